//! Answers to requests that are generated side by side, told to their clients token by token.

use std::cell::Cell;

use chandler_evaluator::{Ended, GenerateOptions};

use super::desk::{Said, Ticket};
use super::form::Finish;
use super::offer::Opened;
use super::reader::Read;
use super::speech::Speech;

/// A request that is being answered.
struct Asker<'a> {
    ticket: &'a Ticket,
    model: &'a str,
    prompt_tokens: usize,
    has_begun: Cell<bool>,
}

/// One answer being written.
struct Row<'a> {
    asker: usize,
    choice: usize,
    most: usize,
    opened: &'a Opened,
    speech: Speech,
    /// Tokens that were taken into account.
    seen: usize,
    ended: Option<Ended>,
}

/// The answers to some requests, row by row as the evaluator numbers them.
pub(super) struct Answers<'a> {
    askers: Vec<Asker<'a>>,
    rows: Vec<Row<'a>>,
    stop_ids: &'a [u32],
    /// The very last word and whose it is: said once the memory is free.
    last_word: Option<(usize, Said)>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(reads: &'a [Read], options: &GenerateOptions, stop_ids: &'a [u32]) -> Self {
        let asker = |read: &'a Read| Asker {
            ticket: &read.ticket,
            model: &read.opened.offer.name,
            prompt_tokens: read.prompts.iter().map(Vec::len).sum(),
            has_begun: Cell::new(false),
        };
        let rows = reads.iter().enumerate().flat_map(|(asker, read)| {
            (0..read.ticket.asked.rows()).map(move |choice| Row {
                asker,
                choice,
                most: read.max_new_tokens.min(options.max_new_tokens),
                opened: &read.opened,
                speech: Speech::new(&read.ticket.asked.stop),
                seen: 0,
                ended: None,
            })
        });
        let (askers, rows) = (reads.iter().map(asker).collect(), rows.collect());
        Self { askers, rows, stop_ids, last_word: None }
    }

    /// Takes the newest token of a row into account, and says whether it is the last. A batch that
    /// was begun anew repeats what it said.
    pub(super) fn heard(&mut self, row: usize, ids: &[u32]) -> Option<Ended> {
        let row = self.rows.get_mut(row)?;
        let number = row.asker;
        let asker = self.askers.get(number)?;
        if asker.ticket.client.is_closed() {
            return Some(Ended::StopString);
        }
        if ids.len() <= row.seen {
            return row.ended.filter(|_| ids.len() == row.seen);
        }
        asker.begin();
        row.seen = ids.len();
        let newest = ids.last().copied().unwrap_or_default();
        let ended = if self.stop_ids.contains(&newest) {
            Ended::StopToken
        } else {
            let (text, stopped) = row.speech.push(&row.opened.tokenizer, newest);
            asker.say_text(row.choice, text);
            match stopped {
                true => Ended::StopString,
                false if row.seen >= row.most => Ended::MaxNewTokens,
                false => return None,
            }
        };
        let word = row.end(asker, ended);
        if self.rows.iter().all(|row| row.ended.is_some()) {
            self.last_word = Some((number, word));
        } else {
            asker.say(word);
        }
        Some(ended)
    }

    /// Tokens of all answers so far.
    pub(super) fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.seen).sum()
    }

    /// Ends what was cut short because memory did not suffice for more, and says the last word, now
    /// that the cache is freed.
    pub(super) fn finish(mut self) {
        for row in &mut self.rows {
            if row.ended.is_none()
                && let Some(asker) = self.askers.get(row.asker)
            {
                asker.begin();
                let word = row.end(asker, Ended::MaxNewTokens);
                asker.say(word);
            }
        }
        if let Some((asker, word)) = self.last_word {
            self.askers[asker].say(word);
        }
    }
}

impl Asker<'_> {
    /// With the first token, so that whoever gets none is told in another way.
    fn begin(&self) {
        if !self.has_begun.replace(true) {
            let model = self.model.to_owned();
            self.say(Said::Begun { model, prompt_tokens: self.prompt_tokens });
        }
    }

    fn say_text(&self, choice: usize, text: String) {
        if !text.is_empty() {
            self.say(Said::Text { choice, text });
        }
    }

    fn say(&self, said: Said) {
        // Whoever is gone is noticed at the next token.
        let _ = self.ticket.client.send(said);
    }
}

impl Row<'_> {
    /// Ends the answer, and returns what is to be said of that.
    fn end(&mut self, asker: &Asker, ended: Ended) -> Said {
        self.ended = Some(ended);
        let mut finish = match ended {
            Ended::StopToken | Ended::StopString => Finish::Stop,
            Ended::MaxNewTokens => Finish::Length,
        };
        if ended != Ended::StopString {
            let (text, stopped) = self.speech.finish(&self.opened.tokenizer);
            asker.say_text(self.choice, text);
            if stopped {
                finish = Finish::Stop;
            }
        }
        Said::Ended { choice: self.choice, finish, tokens: self.seen }
    }
}
