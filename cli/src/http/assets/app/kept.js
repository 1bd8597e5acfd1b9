// What this browser remembers. One that keeps nothing goes on without: it holds until the page is closed.

export function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // As said above.
  }
}

export function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}
