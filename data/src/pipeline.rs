//! From a line of JSON to tokens: template, tokenizer, and which tokens carry loss.

use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};

use crate::DataError;
use crate::chat_template::{ChatTemplate, RenderOptions, Rendered};
use crate::example::Example;
use crate::options::{DataOptions, LossOn};
use crate::record::{ChatExtras, Messages, Record};
use crate::tokenizer::{Tokenizer, Tokens};

/// A model's tokenizer and chat template.
#[derive(Debug, Clone)]
pub struct TextPipeline {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl TextPipeline {
    /// Those of a model folder.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let tokenizer = Tokenizer::open(folder)?;
        let template = ChatTemplate::open(folder, &tokenizer)?;
        Ok(Self { tokenizer, template })
    }

    /// A tokenizer with a template of one's own.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        Self { tokenizer, template }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, where there is one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Tries tokenizer and template on texts of our own, so that one which fails on anything, or
    /// never ends, is told from a record that it fails on. A template may refuse the conversation.
    pub fn probe(&self) -> Result<(), DataError> {
        let runs = ["a", " ", "0", "é", "=-", "\n"].map(|text| text.repeat(48) + "!x");
        self.text_ids("Hello, world! 2 + 2 = 4.")?;
        self.text_ids(&runs.concat())?;
        let message = |role: &str, content: &str| json!({ "role": role, "content": content });
        let messages = vec![message("user", "Hello"), message("assistant", "Hi!")];
        match self.render(&messages, &ChatExtras::default(), false) {
            Err(DataError::Render { .. } | DataError::MissingTemplate) => Ok(()),
            Err(error) => Err(error),
            Ok(rendered) => self.tokenizer.encode(&rendered.text, false).map(drop),
        }
    }

    /// Token ids of a conversation up to where the assistant answers.
    pub fn prompt_ids(
        &self,
        messages: &Messages,
        extras: &ChatExtras,
    ) -> Result<Vec<u32>, DataError> {
        let text = self.render(messages, extras, true)?.text;
        self.tokenizer.encode(&text, false)
    }

    /// Token ids of a plain text, with the tokens that the tokenizer puts before it.
    pub fn text_ids(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.tokenizer.encode(text, true)
    }

    /// Reads, renders and tokenizes a line; nothing is cut yet.
    pub fn example(&self, line: &str, options: &DataOptions) -> Result<Example, DataError> {
        let example = self.example_of(Record::parse(line)?, options.loss_on)?;
        check_ids(&example.input_ids, options.vocab_size)?;
        Ok(example)
    }

    /// Renders and tokenizes a record.
    pub fn example_of(&self, record: Record, loss_on: LossOn) -> Result<Example, DataError> {
        match record {
            Record::Text(text) => {
                let text = self.with_eos(text);
                let input_ids = self.text_ids(&text)?;
                let trained = vec![true; input_ids.len()];
                Ok(Example { text, input_ids, trained })
            }
            Record::TextCompletion { prompt, completion } => {
                self.text_completion(&prompt, completion, loss_on)
            }
            Record::Instruction { instruction, input, output } => {
                self.instruction(&instruction, &input, output, loss_on)
            }
            Record::ChatCompletion { prompt, completion, extras } => {
                self.chat(&prompt, &completion, &extras, loss_on)
            }
            Record::Chat { messages, extras } => {
                let is_assistant = messages.last().is_some_and(is_assistant);
                if loss_on == LossOn::Completion && !is_assistant {
                    let reason = "its last message is not the assistant's, so there is no \
                                  completion to learn"
                        .to_owned();
                    return Err(DataError::Record { reason });
                }
                let (prompt, completion) = messages.split_at(messages.len() - 1);
                self.chat(&prompt.to_vec(), &completion.to_vec(), &extras, loss_on)
            }
        }
    }

    fn text_completion(
        &self,
        prompt: &str,
        completion: String,
        loss_on: LossOn,
    ) -> Result<Example, DataError> {
        let text = format!("{prompt}{}", self.with_eos(completion));
        let prompt_ids = self.text_ids(prompt)?;
        let input_ids = self.text_ids(&text)?;
        let trained = after_prompt(&prompt_ids, &input_ids, loss_on);
        Ok(Example { text, input_ids, trained })
    }

    /// A conversation where the model has a template, else the text that Alpaca was trained with.
    fn instruction(
        &self,
        instruction: &str,
        input: &str,
        output: String,
        loss_on: LossOn,
    ) -> Result<Example, DataError> {
        if self.template.is_none() {
            return self.text_completion(&alpaca_prompt(instruction, input), output, loss_on);
        }
        let prompt = vec![instruction_message(instruction, input)];
        let completion = vec![json!({ "role": "assistant", "content": output })];
        self.chat(&prompt, &completion, &ChatExtras::default(), loss_on)
    }

    pub(crate) fn instruction_prompt(
        &self,
        instruction: &str,
        input: &str,
    ) -> Result<Vec<u32>, DataError> {
        if self.template.is_none() {
            return self.text_ids(&alpaca_prompt(instruction, input));
        }
        self.prompt_ids(&vec![instruction_message(instruction, input)], &ChatExtras::default())
    }

    fn chat(
        &self,
        prompt: &Messages,
        completion: &Messages,
        extras: &ChatExtras,
        loss_on: LossOn,
    ) -> Result<Example, DataError> {
        let messages = [prompt.as_slice(), completion.as_slice()].concat();
        let rendered = self.render(&messages, extras, false)?;
        let tokens = self.tokenizer.tokens(&rendered.text, false)?;
        let trained = match loss_on {
            LossOn::All => vec![true; tokens.ids.len()],
            LossOn::Completion if prompt.is_empty() => vec![true; tokens.ids.len()],
            LossOn::Completion => {
                let prompt_ids = self.prompt_ids(prompt, extras)?;
                after_prompt(&prompt_ids, &tokens.ids, loss_on)
            }
            LossOn::Assistant => {
                let turns = self.assistant_turns(&messages, extras, &rendered)?;
                within(&turns, &rendered.text, &tokens)
            }
        };
        Ok(Example { text: rendered.text, input_ids: tokens.ids, trained })
    }

    /// What the template marks as generated; without marks, what it prints from behind each
    /// generation prompt to the end of that turn.
    fn assistant_turns(
        &self,
        messages: &Messages,
        extras: &ChatExtras,
        rendered: &Rendered,
    ) -> Result<Vec<Range<usize>>, DataError> {
        if self.template.as_ref().is_some_and(ChatTemplate::marks_generation) {
            return Ok(rendered.generated.clone());
        }
        let mut turns: Vec<Range<usize>> = vec![];
        let mut from = 0;
        for (index, message) in messages.iter().enumerate() {
            if !is_assistant(message) {
                continue;
            }
            let until = messages[..=index].to_vec();
            let turn = self.render(&until, extras, false)?.text;
            let before = match index {
                0 => String::new(),
                _ => self.render(&messages[..index].to_vec(), extras, true)?.text,
            };
            let start = common_prefix(&before, &rendered.text).max(from);
            let end = turn_end(message, &turn, &rendered.text, start);
            if start < end {
                turns.push(start..end);
                from = end;
            }
        }
        Ok(turns)
    }

    pub(crate) fn render(
        &self,
        messages: &Messages,
        extras: &ChatExtras,
        add_generation_prompt: bool,
    ) -> Result<Rendered, DataError> {
        let template = self.template.as_ref().ok_or(DataError::MissingTemplate)?;
        let options = RenderOptions {
            add_generation_prompt,
            continue_final_message: false,
            tools: extras.tools.clone(),
            kwargs: extras.template_kwargs.clone(),
        };
        template.render(messages, &options)
    }

    fn with_eos(&self, text: String) -> String {
        match self.tokenizer.special_token("eos_token") {
            Some(eos) if !text.ends_with(eos) => text + eos,
            _ => text,
        }
    }
}

pub(crate) fn check_ids(ids: &[u32], vocab_size: Option<usize>) -> Result<(), DataError> {
    let Some(vocab_size) = vocab_size else { return Ok(()) };
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        Some(id) => Err(DataError::TokenOutOfVocabulary { id: *id, vocab_size }),
        None => Ok(()),
    }
}

pub(crate) fn is_assistant(message: &Value) -> bool {
    message.get("role").is_some_and(|role| role == "assistant")
}

/// Loss from where the prompt's tokens and the whole's part ways, as in TRL.
pub(crate) fn after_prompt(prompt: &[u32], whole: &[u32], loss_on: LossOn) -> Vec<bool> {
    let shared = prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
    (0..whole.len()).map(|token| loss_on == LossOn::All || token >= shared).collect()
}

/// Tokens from the one that covers a range's first character to the one that covers its last.
fn within(ranges: &[Range<usize>], text: &str, tokens: &Tokens) -> Vec<bool> {
    let mut trained = vec![false; tokens.ids.len()];
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        let last_char = text[range.clone()].char_indices().next_back();
        let last = range.start + last_char.map_or(0, |(at, _)| at);
        let Some(first) = tokens.covering(range.start) else { break };
        let end = tokens.covering(last).map_or(tokens.ids.len(), |token| token + 1);
        if first < end {
            trained[first..end].fill(true);
        }
    }
    trained
}

/// Bytes that two texts begin with in common, to a whole character.
fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// Where a turn ends in the whole text: behind its content and what the template prints after it.
fn turn_end(message: &Value, turn: &str, whole: &str, start: usize) -> usize {
    let content = message.get("content").and_then(Value::as_str).unwrap_or_default().trim();
    let tail = turn.rfind(content).map_or("", |at| &turn[at + content.len()..]);
    let Some(at) = whole[start..].find(content) else {
        return common_prefix(turn, whole).max(start);
    };
    let end = start + at + content.len();
    end + common_prefix(tail, &whole[end..])
}

fn instruction_message(instruction: &str, input: &str) -> Value {
    let content =
        if input.is_empty() { instruction.to_owned() } else { format!("{instruction}\n\n{input}") };
    json!({ "role": "user", "content": content })
}

fn alpaca_prompt(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        return format!(
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        );
    }
    format!(
        "Below is an instruction that describes a task, paired with an input that provides further \
         context. Write a response that appropriately completes the request.\n\n### \
         Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    )
}
