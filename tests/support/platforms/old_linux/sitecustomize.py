"""An interpreter as Linux before 5.3 has it: without pidfds. For PYTHONPATH."""

import os
import signal

del os.pidfd_open, os.P_PIDFD, signal.pidfd_send_signal
