/** Calls a function with the page's drawing, but not more often than the eye can read. */

const PERIOD = 120;
const HIDDEN_PERIOD = 1000;

export class Ticker {
  private due = false;
  private stopped = false;
  private last = 0;

  constructor(private readonly call: () => void) {}

  /** Have it called soon, once. */
  wake(): void {
    if (this.due || this.stopped) return;
    this.due = true;
    // A hidden page draws nothing, and has no frames.
    const period = document.hidden ? HIDDEN_PERIOD : PERIOD;
    setTimeout(() => this.next(), Math.max(0, this.last + period - performance.now()));
  }

  stop(): void {
    this.stopped = true;
  }

  private next(): void {
    const run = (): void => {
      this.due = false;
      this.last = performance.now();
      if (!this.stopped) this.call();
    };
    if (document.hidden) run();
    else requestAnimationFrame(run);
  }
}
