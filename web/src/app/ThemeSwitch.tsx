import { type Choice, choice, choose } from "./theme";

export function ThemeSwitch() {
  return (
    <select
      aria-label="Colours"
      value={choice.value}
      onChange={(event) => choose(event.currentTarget.value as Choice)}
    >
      <option value="system">as the system</option>
      <option value="light">light</option>
      <option value="dark">dark</option>
    </select>
  );
}
