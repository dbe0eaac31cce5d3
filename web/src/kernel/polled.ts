import { useEffect, useState } from "preact/hooks";

import { messageOf } from "../api/client";

/**
 * What is asked for again and again while it is looked at, and what was wrong with the last attempt. It gets
 * what was told before, or null. While the page is hidden nothing is asked.
 */
export function usePolled<T>(
  ask: (last: T | null) => Promise<T>,
  period: number,
  inputs: readonly unknown[],
): [T | null, string] {
  const [told, setTold] = useState<T | null>(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    let wanted = true;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let last: T | null = null;
    setTold(null);
    const next = async (): Promise<void> => {
      try {
        if (!document.hidden || last === null) {
          const asked = await ask(last);
          if (!wanted) return;
          last = asked;
          setTold(() => asked);
          setProblem("");
        }
      } catch (error) {
        if (wanted) setProblem(messageOf(error));
      }
      if (wanted) timer = setTimeout(() => void next(), period);
    };
    void next();
    return () => {
      wanted = false;
      clearTimeout(timer);
    };
  }, [period, ...inputs]);
  return [told, problem];
}
