//! Ways for the fuzz targets to readers that are nobody else's business.

use crate::control;
use crate::serve::{Asked, Face};

/// What the control socket would answer to a line, where every command is done.
pub fn control_answer(line: &[u8]) -> String {
    control::answer_text(line).unwrap_or_default()
}

/// Reads the body of a request to `/v1/chat/completions`, or to `/v1/completions`; whether it can be
/// answered.
pub fn openai_request(is_chat: bool, body: &[u8]) -> bool {
    let face = if is_chat { Face::Chat } else { Face::Completion };
    Asked::parse(face, body, 0).is_ok()
}
