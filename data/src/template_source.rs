//! A chat template's source, made ready for the engine.
//!
//! Two kinds of tags are rewritten; everything else stays as it is, and lines keep their numbers.
//! `{% generation %}` becomes a printed mark. What `{% set %}` assigns goes through a function that
//! looks at it first: a namespace that held itself, or lists within lists without end, would take the
//! engine's stack and with it the process as soon as they are printed, compared or let go of.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// Noncharacters that stand for the ends of generated text while a template renders.
pub(crate) const GENERATION_START: char = '\u{FDD0}';
pub(crate) const GENERATION_END: char = '\u{FDD1}';

/// Names of the functions, and filters, that look at what is assigned to a variable and to a
/// namespace's attribute.
const TO_VARIABLE: &str = "__assigned";
const TO_ATTRIBUTE: &str = "__assigned_to_attribute";

/// Lists and mappings within one another that a variable may hold.
const MAX_DEPTH: usize = 200;
/// Elements of a value that are looked at; no conversation has as many.
const MAX_PARTS: usize = 1 << 18;
/// Bytes of text that a variable may hold.
const MAX_TEXT_BYTES: usize = 16 << 20;

/// What is said of a value that is too much.
pub(crate) const TOO_DEEP: &str = "a value has too many lists within lists, or too many parts";
pub(crate) const TOO_LONG: &str = "a variable holds 16 MiB of text at most";
pub(crate) const NAMESPACE_WITHIN: &str = "a namespace cannot be held by a namespace's attribute";

/// A source for the engine.
pub(crate) struct Prepared {
    pub(crate) source: String,
    /// Whether it has `{% generation %}` blocks.
    pub(crate) marks_generation: bool,
}

/// Rewrites the tags.
pub(crate) fn prepare(source: &str) -> Prepared {
    let mut prepared =
        Prepared { source: String::with_capacity(source.len()), marks_generation: false };
    let mut rest = source;
    while let Some((before, piece, after)) = next_piece(rest) {
        prepared.source.push_str(before);
        match Tag::of(piece) {
            Some(tag) => prepared.push(&tag, piece),
            None => prepared.source.push_str(piece),
        }
        rest = after;
    }
    prepared.source.push_str(rest);
    prepared
}

/// Adds what the rewritten tags call, and a `list` with bounds.
pub(crate) fn add_functions(environment: &mut Environment) {
    environment.add_function(TO_VARIABLE, to_variable);
    environment.add_filter(TO_VARIABLE, to_variable);
    environment.add_function(TO_ATTRIBUTE, to_attribute);
    environment.add_filter(TO_ATTRIBUTE, to_attribute);
    environment.add_filter("list", list);
}

impl Prepared {
    fn push(&mut self, tag: &Tag, piece: &str) {
        let Tag { left, inner, right } = tag;
        let mark = match inner.trim() {
            "generation" => GENERATION_START,
            "endgeneration" => GENERATION_END,
            _ => return self.push_set(tag, piece),
        };
        self.marks_generation = true;
        self.source
            .push_str(&format!("{{%{left} if true %}}{{{{ '{mark}' }}}}{{% endif {right}%}}"));
    }

    fn push_set(&mut self, tag: &Tag, piece: &str) {
        let Some((target, value)) = tag.assignment() else { return self.source.push_str(piece) };
        let look = if target.contains('.') { TO_ATTRIBUTE } else { TO_VARIABLE };
        let Tag { left, right, .. } = tag;
        self.source.push_str(&match value {
            Assigned::Expression(value) => {
                format!("{{%{left} set {target}= {look}(({value})) {right}%}}")
            }
            Assigned::Filtered(filters) => {
                format!("{{%{left} set {target}|{filters} | {look} {right}%}}")
            }
        });
    }
}

/// A tag's words, and the signs that take white space from around it.
struct Tag<'a> {
    left: &'a str,
    inner: &'a str,
    right: &'a str,
}

/// What stands on the right of an assignment.
enum Assigned<'a> {
    Expression(&'a str),
    /// The filters of a block's text.
    Filtered(&'a str),
}

impl<'a> Tag<'a> {
    fn of(piece: &'a str) -> Option<Self> {
        let mut inner = piece.strip_prefix("{%")?.strip_suffix("%}")?;
        let (mut left, mut right) = ("", "");
        if inner.starts_with(['-', '+']) {
            (left, inner) = inner.split_at(1);
        }
        if inner.ends_with(['-', '+']) {
            (inner, right) = inner.split_at(inner.len() - 1);
        }
        Some(Self { left, inner, right })
    }

    /// Target and value of `set …`; `None` for other tags, and for a block's text without filters.
    fn assignment(&self) -> Option<(&'a str, Assigned<'a>)> {
        let rest = self.inner.trim_start().strip_prefix("set")?;
        if !rest.starts_with([' ', '\t', '\n', '\r', '(']) {
            return None;
        }
        let at = rest.find(['=', '|'])?;
        let (target, value) = (&rest[..at], &rest[at + 1..]);
        let assigned = match rest.as_bytes()[at] {
            b'=' => Assigned::Expression(value),
            _ => Assigned::Filtered(value),
        };
        Some((target, assigned))
    }
}

/// Splits at the next comment, expression, tag or raw block; `None` where none is left that ends.
fn next_piece(text: &str) -> Option<(&str, &str, &str)> {
    let start = text
        .match_indices('{')
        .map(|(at, _)| at)
        .find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))?;
    let from = &text[start..];
    let length = match from.as_bytes()[1] {
        b'#' => from[2..].find("#}")? + 4,
        b'{' => end_outside_strings(from, "}}")?,
        _ => {
            let length = end_outside_strings(from, "%}")?;
            let is_raw = Tag::of(&from[..length]).is_some_and(|tag| tag.inner.trim() == "raw");
            if is_raw { end_of_raw(from, length)? } else { length }
        }
    };
    let (piece, after) = from.split_at(length);
    Some((&text[..start], piece, after))
}

/// Bytes to the end of this mark, which does not count within a quoted string.
fn end_outside_strings(from: &str, mark: &str) -> Option<usize> {
    let (bytes, mut quote, mut at) = (from.as_bytes(), None, 2);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(mark.as_bytes()) => return Some(at + mark.len()),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Bytes to the end of `{% endraw %}`.
fn end_of_raw(from: &str, mut at: usize) -> Option<usize> {
    loop {
        at += from[at..].find("{%")?;
        let length = from[at..].find("%}").map(|length| length + 2)?;
        if Tag::of(&from[at..at + length]).is_some_and(|tag| tag.inner.trim() == "endraw") {
            return Some(at + length);
        }
        at += 2;
    }
}

fn to_variable(value: Value) -> Result<Value, Error> {
    look_at(&value, false)?;
    Ok(value)
}

fn to_attribute(value: Value) -> Result<Value, Error> {
    look_at(&value, true)?;
    Ok(value)
}

/// A text becomes a list of its letters, whose text is five times as long: not again and again.
fn list(state: &State, value: Value) -> Result<Value, Error> {
    let listed = minijinja::filters::list(state, value)?;
    if listed.len().is_some_and(|parts| parts > MAX_PARTS) {
        return Err(Error::new(ErrorKind::InvalidOperation, TOO_DEEP));
    }
    Ok(listed)
}

/// Refuses what is too deep or too long; and namespaces, where one could come to hold itself.
fn look_at(value: &Value, without_namespaces: bool) -> Result<(), Error> {
    let refuse = |why| Err(Error::new(ErrorKind::InvalidOperation, why));
    let (mut parts, mut bytes) = (0, 0);
    let mut pending = vec![(value.clone(), 0)];
    while let Some((value, depth)) = pending.pop() {
        parts += 1;
        if depth > MAX_DEPTH || parts > MAX_PARTS {
            return refuse(TOO_DEEP);
        }
        bytes += value.as_str().map_or(0, str::len);
        if bytes > MAX_TEXT_BYTES {
            return refuse(TOO_LONG);
        }
        if without_namespaces && is_namespace(&value) {
            return refuse(NAMESPACE_WITHIN);
        }
        let is_map = match value.kind() {
            ValueKind::Map => true,
            ValueKind::Seq | ValueKind::Iterable => false,
            _ => continue,
        };
        for element in value.try_iter()?.take(MAX_PARTS + 1 - parts) {
            let element = if is_map { value.get_item(&element)? } else { element };
            pending.push((element, depth + 1));
        }
    }
    Ok(())
}

/// The engine tells it from other mappings by its type, which is its own.
fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str) -> Result<String, String> {
        let mut environment = Environment::new();
        add_functions(&mut environment);
        let source = prepare(source).source;
        let rendered = environment.render_str(&source, minijinja::context! {});
        rendered.map_err(|error| error.detail().unwrap_or_default().to_owned())
    }

    #[test]
    fn generation_tags_keep_their_white_space_control() {
        let Prepared { source, marks_generation } =
            prepare("a\n{%- generation -%}\nb{% endgeneration %}c");
        assert!(marks_generation);
        let expected = format!(
            "a\n{{%- if true %}}{{{{ '{GENERATION_START}' }}}}{{% endif -%}}\nb{{% if true \
             %}}{{{{ '{GENERATION_END}' }}}}{{% endif %}}c"
        );
        assert_eq!(source, expected);
        assert!(!prepare("{% if generation %}x{% endif %}").marks_generation);
    }

    #[test]
    fn what_is_no_tag_stays_as_it_is() {
        for same in [
            "{%}",
            "{%}}{% x %}",
            "{%",
            "{%-%}",
            "{%%}",
            "a{%b%}c",
            "{# {% generation %} {% set x = 1 %} #}",
            "{% raw %}{% set x = 1 %}{% x {% endraw -%} {",
            "{{ '{% set x = 1 %}' }}",
            "{% if '%}{% set x = 1 %}' %}",
            "{% settings %}{% set x %}text{% endset %}",
            "{{ \"\\\"{% set x = 1 %}\" }}{% raw %}{% set x = 1 %}",
        ] {
            let prepared = prepare(same);
            assert_eq!((prepared.source.as_str(), prepared.marks_generation), (same, false));
        }
    }

    #[test]
    fn assignments_mean_what_they_meant() {
        for (source, printed) in [
            ("{% set x = 1 if true else 2 %}{{ x }}", "1"),
            ("{%- set a, b = 1, 2 -%} {{ a }}{{ b }}", "12"),
            ("{% set (a, b) = (1, 2) %}{{ a }}{{ b }}", "12"),
            ("{% set x = 'a' == \"=%}\" %}{{ x }}", "False"),
            ("{% set x | upper %}text{% endset %}{{ x }}", "TEXT"),
            ("{% set x = nothing %}[{{ x }}]{{ x is defined }}", "[]False"),
            ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
            ("{% set ns = namespace() %}{% set ns.l = [1] + [{'a': 2}] %}{{ ns.l[1].a }}", "2"),
            ("{% set ns = namespace() %}{% set ns.t %}t{% endset %}{{ ns.t }}", "t"),
            ("{% set x = 1, %}{{ x[0] }}", "1"),
        ] {
            assert_eq!(rendered(source).as_deref(), Ok(printed), "{source}");
        }
    }

    #[test]
    fn what_would_take_the_stack_is_refused() {
        let itself = "{% set n = namespace() %}";
        for (within, why) in [
            ("{% set n.a = n %}{{ n }}", NAMESPACE_WITHIN),
            ("{% set n.a = [{'b': n}] %}{{ n }}", NAMESPACE_WITHIN),
            ("{% set n.a | default(n, true) %}{% endset %}{{ n }}", NAMESPACE_WITHIN),
            ("{% set m = namespace(n=n) %}{% set n.m = m %}{{ n == m }}", NAMESPACE_WITHIN),
            ("{% for i in range(9000) %}{% set n.a = [n.a] %}{% endfor %}{{ n }}", TOO_DEEP),
        ] {
            assert_eq!(rendered(&format!("{itself}{within}")), Err(why.to_owned()), "{within}");
        }
        let doubled = format!("{{% set x = 'x' %}}{}", "{% set x = x ~ x %}".repeat(40));
        assert_eq!(rendered(&doubled), Err(TOO_LONG.to_owned()));
        let letters = format!("{{{{ range(99){} }}}}", "| list | upper".repeat(40));
        assert_eq!(rendered(&letters), Err(TOO_DEEP.to_owned()));
        let steps = "{% set x = [[[[x]]]] %}".repeat(5000);
        assert_eq!(rendered(&format!("{steps}{{{{ x }}}}")), Err(TOO_DEEP.to_owned()));
    }
}
