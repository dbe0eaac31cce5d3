import { useEffect, useState } from "preact/hooks";

import { api, type Kernel } from "../api/client";
import { href } from "../app/router";
import { token } from "../app/token";

export default function KernelsView() {
  const [kernels, setKernels] = useState<readonly Kernel[]>([]);
  const shown = token.value;
  useEffect(() => {
    void api.GET("/api/kernels").then(({ data }) => setKernels(data ?? []));
  }, [shown]);
  return (
    <>
      <h1>Kernels</h1>
      <ul>
        {kernels.map(({ id, name }) => (
          <li key={id}>
            <a href={href("kernels", id)}>{name}</a>
          </li>
        ))}
      </ul>
    </>
  );
}
