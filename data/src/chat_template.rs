//! Chat templates, rendered as transformers renders them.
//!
//! Templates are written for Jinja2 in Python. minijinja speaks the language; what is Python's own
//! (its methods, `json.dumps`, how values print) is added here, and so is the `{% generation %}`
//! block, by which a template marks what the assistant writes.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use serde_json::{Map, Value, json};

use crate::DataError;
use crate::files::read_bounded;
use crate::python_text::{JsonStyle, json_dumps, python_str};
use crate::record::Messages;
use crate::template_source::{
    self, GENERATION_END, GENERATION_START, NAMESPACE_WITHIN, Prepared, TOO_DEEP, TOO_LONG,
};
use crate::tokenizer::{MAX_SETTINGS_BYTES, Tokenizer, optional_json};

/// Operations that one rendering may take: far beyond any honest template.
const FUEL: u64 = 50_000_000;
/// Bytes that one rendering may print. What a variable holds and `tojson` makes has bounds of its own;
/// what an expression makes in between, nothing but the memory of the process.
const MAX_PRINTED_BYTES: usize = 256 << 20;
/// Spaces that `tojson` puts before a line for each level.
const MAX_INDENT: usize = 32;
const INDENT_WORDS: &str = "tojson indents by 32 spaces at most";
/// Bytes that one `tojson` makes: each that is made of another's text can double it.
const MAX_JSON_BYTES: usize = 4 << 20;
const JSON_WORDS: &str = "tojson makes 4 MiB at most";
/// Blocks, macros and loops within one another; a thread's stack holds many more.
const MAX_NESTING: usize = 200;

/// What the engine itself says about a rendering.
const ENGINE_WORDS: [&str; 5] = [
    "recursion limit exceeded",
    "repeated string is too large",
    "repeated sequence is too large",
    INDENT_WORDS,
    NAMESPACE_WITHIN,
];

/// What is said of a template that makes too much.
const BOUNDS: [&str; 3] = [JSON_WORDS, TOO_DEEP, TOO_LONG];

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    special_tokens: Map<String, Value>,
    marks_generation: bool,
}

/// What is to be rendered beside the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RenderOptions {
    /// End where the assistant would begin.
    pub add_generation_prompt: bool,
    /// End within the last message, for it to be continued.
    pub continue_final_message: bool,
    /// Tools to offer.
    pub tools: Option<Value>,
    /// Further arguments, such as `enable_thinking`.
    pub kwargs: Map<String, Value>,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// What the template marks as generated, in bytes of the text.
    pub generated: Vec<std::ops::Range<usize>>,
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, or `chat_template` in
    /// `chat_template.json` or `tokenizer_config.json`. `None` if it has none.
    pub fn open(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>, DataError> {
        let path = folder.join("chat_template.jinja");
        if let Some(bytes) = read_bounded(&path, MAX_SETTINGS_BYTES)? {
            let source = String::from_utf8(bytes).map_err(|_| DataError::BadTemplate {
                reason: "chat_template.jinja is not UTF-8".to_owned(),
            })?;
            return Self::new(source, tokenizer).map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let config = optional_json(&folder.join(name))?;
            let source = match config.as_ref().and_then(|config| config.get("chat_template")) {
                Some(Value::String(source)) => Some(source.as_str()),
                Some(Value::Array(named)) => default_of(named),
                _ => None,
            };
            if let Some(source) = source {
                return Self::new(source.to_owned(), tokenizer).map(Some);
            }
        }
        Ok(None)
    }

    /// Compiles a template; the tokenizer's special tokens are variables in it.
    pub fn new(source: String, tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let Prepared { source: compiled, marks_generation } = template_source::prepare(&source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| bad_template(&error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_NESTING);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(print_like_python);
        template_source::add_functions(&mut environment);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned("chat", compiled).map_err(|error| bad_template(&error))?;
        let tokens = tokenizer.special_tokens().iter();
        let special_tokens = tokens.map(|(key, token)| (key.clone(), json!(token))).collect();
        Ok(Self { source, environment, special_tokens, marks_generation })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it has `{% generation %}` blocks.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders a conversation.
    pub fn render(
        &self,
        messages: &Messages,
        options: &RenderOptions,
    ) -> Result<Rendered, DataError> {
        let mut context = self.special_tokens.clone();
        context.insert("messages".to_owned(), json!(messages));
        context.insert("add_generation_prompt".to_owned(), json!(options.add_generation_prompt));
        context.insert("tools".to_owned(), options.tools.clone().unwrap_or(Value::Null));
        context.insert("documents".to_owned(), Value::Null);
        context.extend(options.kwargs.clone());
        let marked = self.print(context)?;
        let mut rendered = unmark(&marked);
        if options.continue_final_message {
            cut_after_final_message(&mut rendered, messages)?;
        }
        Ok(rendered)
    }

    /// What the template prints, which may not be longer than [`MAX_PRINTED_BYTES`].
    fn print(&self, context: Map<String, Value>) -> Result<String, DataError> {
        let failed = |reason: String| DataError::Render { reason };
        let beyond = |reason: String| DataError::TemplateBounds { reason };
        let mut printed = Bounded { text: vec![], most: MAX_PRINTED_BYTES };
        let template = self.environment.get_template("chat");
        let template = template.map_err(|error| failed(self.reason_of(&error)))?;
        let context = minijinja::value::Serde(context);
        let render = || template.render_captured_to(context, &mut printed).map(drop);
        match catch_unwind(AssertUnwindSafe(render)) {
            Ok(Ok(())) => String::from_utf8(printed.text)
                .map_err(|_| failed("it prints what is not UTF-8".to_owned())),
            Ok(Err(_)) if printed.is_full() => {
                Err(beyond(format!("it prints more than {MAX_PRINTED_BYTES} bytes")))
            }
            Ok(Err(error)) if error.kind() == ErrorKind::OutOfFuel => {
                Err(beyond(format!("it takes more than {FUEL} operations")))
            }
            Ok(Err(error)) if error.detail().is_some_and(|words| BOUNDS.contains(&words)) => {
                Err(beyond(self.reason_of(&error)))
            }
            Ok(Err(error)) => Err(failed(self.reason_of(&error))),
            Err(_) => Err(failed("the template engine gave up on it".to_owned())),
        }
    }

    /// What went wrong in words that repeat nothing of the record: reasons end up in logs.
    ///
    /// The words of `raise_exception` are shown where they stand in the template as they are.
    fn reason_of(&self, error: &Error) -> String {
        use ErrorKind::{
            MissingArgument, SyntaxError, UndefinedError, UnknownFilter, UnknownFunction,
            UnknownMethod, UnknownTest,
        };
        let place =
            error.line().map_or_else(String::new, |line| format!(" (line {line} of the template)"));
        let of_the_template = matches!(
            error.kind(),
            MissingArgument
                | SyntaxError
                | UndefinedError
                | UnknownFilter
                | UnknownFunction
                | UnknownMethod
                | UnknownTest
        );
        match error.detail() {
            Some(detail)
                if of_the_template
                    || ENGINE_WORDS.contains(&detail)
                    || BOUNDS.contains(&detail)
                    || self.source.contains(detail) =>
            {
                format!("{detail}{place}")
            }
            Some(_) => format!("{}, in words made of the record{place}", error.kind()),
            None => format!("{}{place}", error.kind()),
        }
    }
}

/// Text up to a bound.
struct Bounded {
    text: Vec<u8>,
    most: usize,
}

impl Bounded {
    fn is_full(&self) -> bool {
        self.text.len() > self.most
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (self.most + 1).saturating_sub(self.text.len());
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if self.is_full() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn bad_template(error: &Error) -> DataError {
    DataError::BadTemplate { reason: error.to_string() }
}

fn default_of(named: &[Value]) -> Option<&str> {
    let by_name = |name: &str| named.iter().find(|t| t.get("name").is_some_and(|n| n == name));
    by_name("default").or(named.first())?.get("template")?.as_str()
}

fn unmark(marked: &str) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut generated = vec![];
    let mut start = None;
    for c in marked.chars() {
        match c {
            GENERATION_START => start = Some(text.len()),
            GENERATION_END => generated.extend(start.take().map(|start| start..text.len())),
            c => text.push(c),
        }
    }
    Rendered { text, generated }
}

/// Cuts behind the last message's text, with the white space that the text itself ends in.
fn cut_after_final_message(rendered: &mut Rendered, messages: &Messages) -> Result<(), DataError> {
    let content = messages.last().and_then(|message| message.get("content"));
    let last = match content {
        Some(Value::String(text)) => Some(text.as_str()),
        Some(Value::Array(parts)) => {
            parts.iter().rev().find_map(|part| part.get("text")).and_then(Value::as_str)
        }
        _ => None,
    };
    let Some(last) = last else {
        let reason = "the last message has no text that could be continued".to_owned();
        return Err(DataError::Render { reason });
    };
    let Some(at) = rendered.text.rfind(last.trim()) else {
        let reason = "the template does not print the last message as it is".to_owned();
        return Err(DataError::Render { reason });
    };
    let trimmed = at + last.trim().len();
    // A template that keeps the text's own trailing space keeps it here too.
    let tail = &last[last.trim_end().len()..];
    let whole = rendered.text[trimmed..].starts_with(tail);
    rendered.text.truncate(if whole { trimmed + tail.len() } else { trimmed });
    let end = rendered.text.len();
    rendered.generated.retain(|range| range.start < end);
    Ok(())
}

fn print_like_python(out: &mut Output, state: &mut State, value: &Jinja) -> Result<(), Error> {
    use minijinja::value::ValueKind::{Bool, Map, None, Number, Seq};
    match value.kind() {
        Bool | Map | None | Number | Seq => {
            Ok(std::fmt::Write::write_str(out, &python_str(&plain(value)?))?)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

fn plain(value: &Jinja) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "a value cannot be printed").with_source(error)
    })
}

fn tojson(value: &Jinja, kwargs: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    if indent.is_some_and(|spaces| spaces > MAX_INDENT) {
        return Err(Error::new(ErrorKind::InvalidOperation, INDENT_WORDS));
    }
    let style = JsonStyle { indent, sort_keys: sort_keys.unwrap_or(false) };
    let text = json_dumps(&plain(value)?, style);
    if text.len() > MAX_JSON_BYTES {
        return Err(Error::new(ErrorKind::InvalidOperation, JSON_WORDS));
    }
    Ok(Jinja::from_safe_string(text))
}

fn raise_exception(message: String) -> Result<Jinja, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Result<String, Error> {
    let now = jiff::ZonedDateTime::now();
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_become_ranges() {
        let marked = format!("ab{GENERATION_START}cdé{GENERATION_END}f");
        let rendered = unmark(&marked);
        assert_eq!((rendered.text.as_str(), rendered.generated.len()), ("abcdéf", 1));
        assert_eq!(rendered.generated[0], 2..6);
    }
}
