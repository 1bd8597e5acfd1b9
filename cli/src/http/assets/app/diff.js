// What of one text is not in another, word by word: a longest common subsequence.

// Beyond so many comparisons the middle counts as changed altogether.
const MOST = 4e6;

const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];

// The pieces of `before` and of `after`, as `[text, isChanged]`.
export function difference(before, after) {
  const [a, b] = [words(before), words(after)];
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const [keptA, keptB] = common(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const flags = (all, kept) => all.map((_, at) => at >= start && at < all.length - end && !kept.has(at - start));
  return [pieces(a, flags(a, keptA)), pieces(b, flags(b, keptB))];
}

// Which words of either are common to both.
function common(a, b) {
  const kept = [new Set(), new Set()];
  if (a.length * b.length > MOST) return kept;
  const width = b.length + 1;
  // How many words are common from here to both ends.
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = a[i] === b[j] ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) {
      kept[0].add(i++);
      kept[1].add(j++);
    } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return kept;
}

function pieces(all, flags) {
  const made = [];
  all.forEach((word, at) => {
    if (made.length && made.at(-1)[1] === flags[at]) made.at(-1)[0] += word;
    else made.push([word, flags[at]]);
  });
  return made;
}
