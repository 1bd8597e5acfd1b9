//! Which token speaks for the user, as `huggingface_hub` finds it.

use std::path::{Path, PathBuf};

/// `HF_TOKEN`, else what `hf auth login` wrote.
pub(super) fn token() -> Option<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    if let Some(token) = set("HF_TOKEN") {
        return Some(token.trim().to_owned());
    }
    let file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
        let home = set("HF_HOME").map(PathBuf::from);
        let cache = set("XDG_CACHE_HOME").map(|cache| Path::new(&cache).join("huggingface"));
        let user = set("HOME").map(|home| Path::new(&home).join(".cache/huggingface"));
        Some(home.or(cache).or(user)?.join("token"))
    })?;
    let text = std::fs::read_to_string(file).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}
