export async function retouch() {
  throw new Error("Retouching does not work here yet.");
}
