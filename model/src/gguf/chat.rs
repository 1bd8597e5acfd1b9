//! The chat template, as text: here, nothing runs it.

use std::io::Read;
use std::path::Path;

use chandler_durable::is_there;
use serde_json::Value;

use super::GgufError;
use crate::{ModelError, foreign};

/// Of a template of its own file.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;

/// The template of a model folder: `chat_template.jinja`, else the one in `tokenizer_config.json`,
/// or the one that is called `default` there.
pub(super) fn template(
    folder: &Path,
    tokenizer_config: &Value,
) -> Result<Option<String>, GgufError> {
    let path = folder.join("chat_template.jinja");
    if is_there(&path)? {
        foreign::check_inside(folder, &path)?;
        let mut text = String::new();
        foreign::open_regular(&path)?
            .take(MAX_TEMPLATE_BYTES)
            .read_to_string(&mut text)
            .map_err(|source| ModelError::Read { path, source })?;
        return Ok(Some(text));
    }
    let named = |template: &&Value| template["name"] == "default";
    Ok(match &tokenizer_config["chat_template"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(templates) => {
            let default = templates.iter().find(named);
            default.and_then(|template| template["template"].as_str()).map(str::to_owned)
        }
        _ => None,
    })
}
