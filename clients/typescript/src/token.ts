// The characters that editors, shells and mounted files put around a secret: ASCII white space, and a byte order mark.
const AROUND = /^[ \t\r\n\v\f\ufeff]+|[ \t\r\n\v\f\ufeff]+$/g;

/** Returns the token without the characters around it. Throws a `TypeError` that names only the token's source. */
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
