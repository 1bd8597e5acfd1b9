//! What an evaluation asks: a prompt, and what is known about the right answer.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::options::LossOn;
use crate::pipeline::{after_prompt, check_ids, is_assistant};
use crate::record::{ChatExtras, Messages, Record, extras};
use crate::{DataError, Row, TextPipeline, strict_json};

/// Something to ask a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// What the answer should be, where that is known.
    pub reference: Option<String>,
    /// What the record says of that beside its completion, under `reference`: a text, several that
    /// are all right, or any other value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Value>,
    /// The answers to choose from, where the record names some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<Choices>,
    /// The record itself, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
}

/// The answers of a multiple choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choices {
    /// Each behind the prompt.
    pub each: Vec<Choice>,
    /// Which of them is right, from 0.
    pub right: usize,
}

/// One answer of a multiple choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Tokens of the prompt and the answer.
    pub input_ids: Vec<u32>,
    /// The first of them that is the answer's.
    pub begins_at: usize,
}

impl Choice {
    /// As a row in which the answer alone carries loss.
    pub fn row(&self) -> Row {
        let label = |(at, id): (usize, &u32)| {
            if at < self.begins_at { crate::IGNORE_INDEX } else { i64::from(*id) }
        };
        Row {
            labels: self.input_ids.iter().enumerate().map(label).collect(),
            input_ids: self.input_ids.clone(),
            seq_lengths: vec![self.input_ids.len() as u32],
            examples: 1,
        }
    }
}

impl TextPipeline {
    /// What an evaluation asks with a line: any record, one with `reference` beside or in place of
    /// its completion, or one with `choices` and `answer`. All ids are below `vocab_size` where that
    /// is known. A `system` message is put before a conversation that has none.
    pub fn question(
        &self,
        line: &str,
        vocab_size: Option<usize>,
        system: Option<&str>,
    ) -> Result<Question, DataError> {
        let question = match Special::parse(line)? {
            Some(Special::Choices { prompt, choices, right }) => {
                self.choosing(prompt, &choices, right, system)?
            }
            Some(Special::Reference { prompt, reference }) => {
                self.expecting(prompt, reference, system)?
            }
            Some(Special::Answered { record, reference }) => {
                Question { expected: Some(reference), ..self.question_of(record, system)? }
            }
            None => self.question_of(Record::parse(line)?, system)?,
        };
        check_ids(&question.prompt_ids, vocab_size)?;
        for choice in question.choices.iter().flat_map(|choices| &choices.each) {
            check_ids(&choice.input_ids, vocab_size)?;
        }
        Ok(question)
    }

    fn question_of(&self, record: Record, system: Option<&str>) -> Result<Question, DataError> {
        let text_of = |message: &Value| {
            message.get("content").and_then(Value::as_str).map(|text| text.trim().to_owned())
        };
        let (prompt_ids, reference) = match record {
            Record::Text(text) => (self.text_ids(&text)?, None),
            Record::TextCompletion { prompt, completion } => {
                (self.text_ids(&prompt)?, Some(completion.trim().to_owned()))
            }
            Record::Instruction { instruction, input, output } => {
                let prompt = self.instruction_prompt(&instruction, &input)?;
                (prompt, Some(output.trim().to_owned()))
            }
            Record::ChatCompletion { prompt, completion, extras } => {
                let prompt = with_system(prompt, system);
                (self.prompt_ids(&prompt, &extras)?, completion.first().and_then(text_of))
            }
            Record::Chat { mut messages, extras } => {
                let last = messages.pop_if(|message| is_assistant(message));
                let answer = last.as_ref().and_then(text_of);
                (self.prompt_ids(&with_system(messages, system), &extras)?, answer)
            }
        };
        Ok(Question { prompt_ids, reference, ..Question::default() })
    }

    /// A prompt and what is said of its answer.
    fn expecting(
        &self,
        prompt: Asked,
        reference: Value,
        system: Option<&str>,
    ) -> Result<Question, DataError> {
        let prompt_ids = self.ids(&self.prompt_text(prompt, system)?)?;
        let text = match &reference {
            Value::String(text) => text.trim().to_owned(),
            other => other.to_string(),
        };
        let (reference, expected) = (Some(text), Some(reference));
        Ok(Question { prompt_ids, reference, expected, ..Question::default() })
    }

    /// Every answer behind the prompt, as the model would have to write it.
    fn choosing(
        &self,
        prompt: Asked,
        choices: &[String],
        right: usize,
        system: Option<&str>,
    ) -> Result<Question, DataError> {
        let prompt = self.prompt_text(prompt, system)?;
        let prompt_ids = self.ids(&prompt)?;
        let is_open = |c: char| c.is_whitespace();
        let apart = prompt.is_rendered || prompt.text.ends_with(is_open);
        let choice = |text: &String| -> Result<Choice, DataError> {
            let between = if apart || text.starts_with(is_open) { "" } else { " " };
            let whole = format!("{}{between}{text}", prompt.text);
            let input_ids = self.ids(&PromptText { text: whole, ..prompt })?;
            let trained = after_prompt(&prompt_ids, &input_ids, LossOn::Completion);
            let begins_at = trained.iter().take_while(|trained| !**trained).count();
            if begins_at == input_ids.len() {
                return Err(bad("one of the choices adds no token to the prompt".to_owned()));
            }
            Ok(Choice { text: text.clone(), input_ids, begins_at })
        };
        let each = choices.iter().map(choice).collect::<Result<Vec<_>, _>>()?;
        let reference = Some(choices[right].trim().to_owned());
        let choices = Some(Choices { each, right });
        Ok(Question { prompt_ids, reference, choices, ..Question::default() })
    }

    fn prompt_text(&self, prompt: Asked, system: Option<&str>) -> Result<PromptText, DataError> {
        let Asked { what, extras } = prompt;
        let messages = match what {
            What::Messages(messages) => messages,
            What::Question(text) if self.template().is_some() => {
                vec![json!({ "role": "user", "content": text })]
            }
            What::Question(text) | What::Text(text) => {
                return Ok(PromptText { text, is_rendered: false });
            }
        };
        let messages = with_system(messages, system);
        let text = self.render(&messages, &extras, true)?.text;
        Ok(PromptText { text, is_rendered: true })
    }

    fn ids(&self, prompt: &PromptText) -> Result<Vec<u32>, DataError> {
        // A template puts its own beginning of text.
        self.tokenizer().encode(&prompt.text, !prompt.is_rendered)
    }
}

/// A prompt as it is tokenized.
struct PromptText {
    text: String,
    /// Whether the chat template made it.
    is_rendered: bool,
}

fn with_system(mut messages: Messages, system: Option<&str>) -> Messages {
    let has_one = messages.first().is_some_and(|message| message["role"] == "system");
    if let (Some(system), false) = (system, has_one) {
        messages.insert(0, json!({ "role": "system", "content": system }));
    }
    messages
}

/// A record that says more of its answer than training reads.
#[derive(Debug)]
enum Special {
    /// With `choices`.
    Choices { prompt: Asked, choices: Vec<String>, right: usize },
    /// With `reference`, and no answer of its own.
    Reference { prompt: Asked, reference: Value },
    /// With `reference`, and an answer of its own, which is no part of the prompt.
    Answered { record: Record, reference: Value },
}

/// What comes before the answer, and what the template is told beside it.
#[derive(Debug)]
struct Asked {
    what: What,
    extras: ChatExtras,
}

#[derive(Debug)]
enum What {
    /// `messages`, or `prompt` as a list of them.
    Messages(Messages),
    /// `question`: a user's message where the model has a chat template.
    Question(String),
    /// `prompt`: text as it is.
    Text(String),
}

impl Special {
    /// Reads a line; `None` if it is no record of these kinds.
    fn parse(line: &str) -> Result<Option<Self>, DataError> {
        let Ok(Value::Object(mut object)) = strict_json::parse(line) else { return Ok(None) };
        // Sets that went through a table have every column in every record.
        let mut take = |key: &str| object.remove(key).filter(|value| !value.is_null());
        let (choices, reference) = (take("choices"), take("reference"));
        let Some(choices) = choices else {
            let Some(reference) = reference else { return Ok(None) };
            return Ok(Some(match answered(line, &object) {
                Some(record) => Self::Answered { record, reference },
                None => Self::Reference { prompt: asked(object)?, reference },
            }));
        };
        let Value::Array(choices) = choices else {
            return Err(bad("choices is not a list".to_owned()));
        };
        let text = |choice: Value| match choice {
            Value::String(text) if !text.is_empty() => Ok(text),
            _ => Err(bad("choices has something that is not a text".to_owned())),
        };
        let choices = choices.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
        if choices.len() < 2 {
            return Err(bad("choices has fewer than two".to_owned()));
        }
        let right = right(object.remove("answer"), &choices)?;
        Ok(Some(Self::Choices { prompt: asked(object)?, choices, right }))
    }
}

/// `answer` is the number of the right choice from 0, its letter, or the choice itself.
fn right(answer: Option<Value>, choices: &[String]) -> Result<usize, DataError> {
    let found = match &answer {
        Some(Value::Number(number)) => number.as_u64().map(|number| number as usize),
        Some(Value::String(text)) => {
            choices.iter().position(|choice| choice == text).or_else(|| letter(text))
        }
        _ => None,
    };
    found.filter(|right| *right < choices.len()).ok_or_else(|| {
        bad("answer is not the number (from 0), the letter or the text of a choice".to_owned())
    })
}

fn letter(text: &str) -> Option<usize> {
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(letter @ 'A'..='Z'), None) => Some(letter as usize - 'A' as usize),
        (Some(letter @ 'a'..='z'), None) => Some(letter as usize - 'a' as usize),
        _ => None,
    }
}

/// The record of a line, where it has an answer of its own.
fn answered(line: &str, object: &Map<String, Value>) -> Option<Record> {
    if object.get("question").is_some_and(Value::is_string) {
        return None;
    }
    let record = Record::parse(line).ok()?;
    let has_answer = match &record {
        Record::Chat { messages, .. } => messages.last().is_some_and(is_assistant),
        Record::Text(_) => false,
        Record::ChatCompletion { .. }
        | Record::TextCompletion { .. }
        | Record::Instruction { .. } => true,
    };
    has_answer.then_some(record)
}

fn asked(mut object: Map<String, Value>) -> Result<Asked, DataError> {
    let extras = extras(&mut object)?;
    Ok(Asked { what: what(object)?, extras })
}

fn what(mut object: Map<String, Value>) -> Result<What, DataError> {
    if let Some(Value::String(text)) = object.remove("question") {
        return Ok(What::Question(text));
    }
    let given = |key: &str, object: &mut Map<String, Value>| {
        object.remove(key).filter(|value| !value.is_null())
    };
    let messages = match (given("messages", &mut object), given("prompt", &mut object)) {
        (Some(messages), _) => messages,
        (None, Some(Value::String(text))) => return Ok(What::Text(text)),
        (None, Some(prompt)) => prompt,
        (None, None) => {
            return Err(bad("it has no question, prompt or messages to answer".to_owned()));
        }
    };
    let line = json!({ "messages": messages }).to_string();
    match Record::parse(&line)? {
        Record::Chat { mut messages, .. } => {
            // What the assistant said last is an answer, and not what is asked.
            messages.pop_if(|message| is_assistant(message));
            Ok(What::Messages(messages))
        }
        _ => Err(bad("its messages cannot be read".to_owned())),
    }
}

fn bad(reason: String) -> DataError {
    DataError::Record { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(model: &str) -> TextPipeline {
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/goldens/models/");
        TextPipeline::open(format!("{models}{model}").as_ref()).unwrap()
    }

    fn decoded(pipeline: &TextPipeline, ids: &[u32]) -> String {
        pipeline.tokenizer().decode(ids, false).unwrap()
    }

    #[test]
    fn a_system_message_is_put_before_a_conversation_that_has_none() {
        let pipeline = pipeline("qwen3");
        let ask = |line: &str| {
            let question = pipeline.question(line, None, Some("Be brief.")).unwrap();
            (decoded(&pipeline, &question.prompt_ids), question.reference)
        };
        let (prompt, reference) = ask(
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yo "}]}"#,
        );
        assert!(prompt.contains("Be brief."), "{prompt}");
        assert_eq!(reference.as_deref(), Some("Yo"));
        let (prompt, _) = ask(
            r#"{"messages": [{"role": "system", "content": "Be long."}, {"role": "user", "content": "Hi"}]}"#,
        );
        assert!(prompt.contains("Be long.") && !prompt.contains("Be brief."), "{prompt}");
        let (prompt, _) = ask(r#"{"prompt": "2 + 2 =", "completion": " 4"}"#);
        assert!(!prompt.contains("Be brief."), "{prompt}");
    }

    #[test]
    fn every_choice_stands_behind_the_prompt() {
        let pipeline = pipeline("qwen3");
        for (line, right) in [
            (r#"{"prompt": "The sky is", "choices": ["green", "blue", " red"], "answer": 1}"#, 1),
            (r#"{"question": "The sky is", "choices": ["green", "blue"], "answer": "B"}"#, 1),
            (r#"{"question": "The sky is", "choices": ["green", "blue"], "answer": "green"}"#, 0),
            (
                r#"{"messages": [{"role": "user", "content": "The sky is"}], "choices": ["x", "y"], "answer": "a"}"#,
                0,
            ),
        ] {
            let question = pipeline.question(line, None, None).unwrap();
            let choices = question.choices.unwrap();
            assert_eq!(choices.right, right, "{line}");
            let prompt = decoded(&pipeline, &question.prompt_ids);
            for choice in &choices.each {
                let whole = decoded(&pipeline, &choice.input_ids);
                assert!(whole.starts_with(&prompt) && whole.ends_with(&choice.text), "{whole}");
                let answer = decoded(&pipeline, &choice.input_ids[choice.begins_at..]);
                assert_eq!(answer.trim(), choice.text.trim());
                let row = choice.row();
                assert_eq!(row.labels.iter().filter(|label| **label >= 0).count(), {
                    choice.input_ids.len() - choice.begins_at
                });
            }
            let reference = choices.each[right].text.trim().to_owned();
            assert_eq!(question.reference, Some(reference));
        }
    }

    #[test]
    fn a_reference_may_be_any_value() {
        let pipeline = pipeline("qwen3");
        for (line, text) in [
            (r#"{"question": "Which?", "reference": ["x", "y"]}"#, r#"["x","y"]"#),
            (r#"{"prompt": "Which?", "reference": " x "}"#, "x"),
            (
                r#"{"messages": [{"role": "user", "content": "Which?"}], "reference": {"a": 1}}"#,
                r#"{"a":1}"#,
            ),
        ] {
            let question = pipeline.question(line, None, None).unwrap();
            assert_eq!(question.reference.as_deref(), Some(text));
            assert!(question.expected.is_some() && !question.prompt_ids.is_empty());
        }
    }

    #[test]
    fn null_is_as_if_it_were_not_there() {
        let pipeline = pipeline("qwen3");
        let line =
            r#"{"prompt": "2 + 2 =", "completion": " 4", "choices": null, "reference": null}"#;
        let question = pipeline.question(line, None, None).unwrap();
        assert!(decoded(&pipeline, &question.prompt_ids).ends_with("2 + 2 ="));
        assert_eq!((question.reference.as_deref(), question.expected), (Some("4"), None));
        assert_eq!(question.choices, None);
        let line = r#"{"question": "2 + 2?", "choices": null, "reference": "4", "messages": null}"#;
        let question = pipeline.question(line, None, None).unwrap();
        assert_eq!(question.expected, Some(json!("4")));
    }

    #[test]
    fn an_answer_of_its_own_is_no_part_of_the_prompt() {
        let pipeline = pipeline("qwen3");
        let user = r#"{"role": "user", "content": "Which?"}"#;
        let answer = r#"{"role": "assistant", "content": "It is x."}"#;
        let with = |record: &str, more: &str| {
            let line = format!("{{{record}{more}}}");
            pipeline.question(&line, None, None).unwrap()
        };
        for record in [
            format!(r#""messages": [{user}, {answer}]"#),
            format!(r#""prompt": [{user}], "completion": [{answer}]"#),
            r#""instruction": "Which?", "output": "It is x.""#.to_owned(),
            r#""prompt": "Which?", "completion": "It is x.""#.to_owned(),
        ] {
            let plain = with(&record, "");
            let question = with(&record, r#", "reference": "x""#);
            assert_eq!(question.prompt_ids, plain.prompt_ids, "{record}");
            assert_eq!(question.reference.as_deref(), Some("It is x."), "{record}");
            assert_eq!(question.expected, Some(json!("x")), "{record}");
        }
        let record = format!(r#""messages": [{user}, {answer}]"#);
        let choices = with(&record, r#", "choices": ["x", "y"], "answer": 0"#);
        assert_eq!(choices.prompt_ids, with(&record, "").prompt_ids);
    }

    #[test]
    fn what_the_template_is_told_counts_beside_a_reference() {
        let pipeline = pipeline("qwen3");
        let user = r#""messages": [{"role": "user", "content": "Which?"}]"#;
        let ids = |more: &str| {
            let line = format!("{{{user}{more}}}");
            pipeline.question(&line, None, None).unwrap().prompt_ids
        };
        let kwargs = r#", "chat_template_kwargs": {"enable_thinking": false}"#;
        let expected = ids(kwargs);
        assert_ne!(ids(""), expected, "the template knows the argument");
        assert_eq!(ids(&format!(r#"{kwargs}, "reference": "x""#)), expected);
        let choices = r#", "choices": ["x", "y"], "answer": 0"#;
        assert_eq!(ids(&format!("{kwargs}{choices}")), expected);
    }

    #[test]
    fn a_multiple_choice_that_cannot_be_asked_says_why() {
        let pipeline = pipeline("qwen3");
        for (line, word) in [
            (r#"{"prompt": "a", "choices": ["x"], "answer": 0}"#, "fewer than two"),
            (r#"{"prompt": "a", "choices": ["x", "y"], "answer": 2}"#, "answer"),
            (r#"{"prompt": "a", "choices": ["x", "y"]}"#, "answer"),
            (r#"{"prompt": "a", "choices": ["x", 3], "answer": 0}"#, "not a text"),
            (r#"{"prompt": "a", "choices": {}, "answer": 0}"#, "not a list"),
            (r#"{"choices": ["x", "y"], "answer": 0}"#, "no question"),
            (r#"{"prompt": [{"content": "a"}], "choices": ["x", "y"], "answer": 0}"#, "role"),
        ] {
            let error = pipeline.question(line, None, None).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
