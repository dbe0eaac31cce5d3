/** Addresses of a kernel's resources, and files for the reader. */

export function pathOf(id: string, rest: string): string {
  return `/api/kernels/${encodeURIComponent(id)}/${rest}`;
}

/** Give a file to the browser to save. */
export function saved(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
