export default function ConsoleView({ id }: { id: string }) {
  return <p>Console of {id}</p>;
}
