//! The chat template, as text: here, nothing runs it.

use std::path::Path;

use chandler_durable::is_there;
use serde_json::Value;

use super::GgufError;
use crate::{ModelError, foreign};

/// Of a template of its own file; as much as is trained with.
const MAX_TEMPLATE_BYTES: u64 = 16 << 20;

/// The template of a model folder, the same that its training texts are rendered by:
/// `chat_template.jinja`, else the one in `chat_template.json` or `tokenizer_config.json`, of several
/// the one that is called `default` or else the first.
pub(super) fn template(folder: &Path) -> Result<Option<String>, GgufError> {
    let path = folder.join("chat_template.jinja");
    if is_there(&path)? {
        foreign::check_inside(folder, &path)?;
        return Ok(Some(foreign::read_text(&path, MAX_TEMPLATE_BYTES)?));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let settings = optional_json(folder, name)?;
        let template = match &settings["chat_template"] {
            Value::String(text) => Some(text.as_str()),
            Value::Array(named) => default_of(named),
            _ => None,
        };
        if let Some(template) = template {
            return Ok(Some(template.to_owned()));
        }
    }
    Ok(None)
}

fn default_of(named: &[Value]) -> Option<&str> {
    let default = named.iter().find(|template| template["name"] == "default");
    default.or(named.first())?["template"].as_str()
}

/// A JSON file of the folder, which may lack it.
pub(super) fn optional_json(folder: &Path, name: &str) -> Result<Value, GgufError> {
    let path = folder.join(name);
    if !is_there(&path)? {
        return Ok(Value::Null);
    }
    let text = foreign::read_json(&path)?;
    Ok(serde_json::from_str(&text).map_err(|source| ModelError::Json { path, source })?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use chandler_durable::write;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_is_found_where_training_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            write(&folder.path().join(name), text.as_bytes()).unwrap();
        };
        let found = || template(folder.path()).unwrap();
        assert_eq!(found(), None);
        let named = |name: &str| json!({ "name": name, "template": format!("{name}!") });
        put("tokenizer_config.json", &json!({ "chat_template": [named("a")] }).to_string());
        assert_eq!(found().unwrap(), "a!", "without a default the first goes");
        let both = json!({ "chat_template": [named("a"), named("default")] });
        put("tokenizer_config.json", &both.to_string());
        assert_eq!(found().unwrap(), "default!");
        put("chat_template.json", &json!({ "chat_template": "json" }).to_string());
        assert_eq!(found().unwrap(), "json");
        put("chat_template.jinja", "jinja");
        assert_eq!(found().unwrap(), "jinja");
        let large = File::create(folder.path().join("chat_template.jinja")).unwrap();
        large.set_len(MAX_TEMPLATE_BYTES + 1).unwrap();
        let refused = template(folder.path());
        assert!(matches!(refused, Err(GgufError::Model(ModelError::TooLarge { .. }))));
    }
}
