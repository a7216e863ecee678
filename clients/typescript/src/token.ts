// What editors, shells and mounted files put around a secret: white space of ASCII, and a byte order mark.
const AROUND = /^[ \t\r\n\v\f\ufeff]+|[ \t\r\n\v\f\ufeff]+$/g;

/** The token without what is around it. Throws a `TypeError` that names where it came from, and does not hold it. */
export function clean(text: string, source: string): string {
  const token = text.replace(AROUND, "");
  if (!token) throw new TypeError(`${source}: there is no service token in it`);
  // The transport would print a token that it cannot send.
  const wrong = token.search(/[^!-~]/);
  if (wrong < 0) return token;
  throw new TypeError(
    `${source}: what it holds is not a token: of its ${token.length} characters, number ${wrong + 1} can be in none`,
  );
}
