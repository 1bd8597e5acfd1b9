//! The thread that has prompts read: it owns the worker that stands ready.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use chandler_evaluator::SamplingOptions;

use super::desk::{Desk, Prompted, Side, Ticket, Turn};
use super::offer::{Opened, Source};
use super::refusal::Refusal;
use crate::config::Config;
use crate::failure::in_one_line;
use crate::worker::{Standing, WorkerError};

/// A request whose prompts are tokens, and fit.
pub(super) struct Read {
    pub(super) ticket: Ticket,
    pub(super) opened: Arc<Opened>,
    pub(super) prompts: Vec<Vec<u32>>,
    /// Of each answer at most.
    pub(super) max_new_tokens: usize,
}

impl Prompted for Read {
    fn ticket(&self) -> &Ticket {
        &self.ticket
    }
}

/// Prompts that are tokens, and fit.
struct Prompts {
    opened: Arc<Opened>,
    ids: Vec<Vec<u32>>,
    max_new_tokens: usize,
}

/// What the thread works with.
pub(super) struct Reader {
    pub(super) config: Config,
    pub(super) source: Source,
    /// The model at hand.
    pub(super) open: Option<(Standing, Arc<Opened>)>,
}

impl Reader {
    /// Reads prompts until the desk ends.
    pub(super) fn work(mut self, desk: &Desk<Read>) {
        loop {
            match desk.next_unread() {
                Turn::End => return,
                Turn::LetGo => {
                    self.open = None;
                    desk.has_let_go(Side::Reader);
                }
                // Whoever asked is gone.
                Turn::Work(ticket) if ticket.client.is_closed() => {}
                Turn::Work(ticket) => {
                    let stop = || desk.is_closed() || ticket.client.is_closed();
                    match catch_unwind(AssertUnwindSafe(|| self.read(&ticket, &stop))) {
                        Ok(Ok(Prompts { opened, ids: prompts, max_new_tokens })) => {
                            desk.has_read(Read { ticket, opened, prompts, max_new_tokens });
                        }
                        Ok(Err(refusal)) => {
                            desk.is_done(Side::Reader);
                            ticket.refuse(refusal);
                        }
                        Err(_) => {
                            self.open = None;
                            desk.is_done(Side::Reader);
                            ticket.refuse(Refusal::defect());
                        }
                    }
                }
            }
        }
    }

    fn read(&mut self, ticket: &Ticket, stop: &dyn Fn() -> bool) -> Result<Prompts, Refusal> {
        let asked = &ticket.asked;
        let what = asked.face.prompt_field();
        let most = self.config.serve.max_new_tokens;
        let (standing, opened) = self.open(asked.model.as_deref(), stop)?;
        biases_are_of(opened.shape.vocab_size, &asked.sampling)?;
        let ids = asked.prompts.iter().map(|query| standing.ask(query, stop));
        let ids: Result<Vec<_>, _> = ids.collect();
        let opened = Arc::clone(opened);
        if matches!(ids, Err(WorkerError::OtherTokenizer { .. })) {
            // The model is opened anew with the next request.
            self.open = None;
        }
        let ids = ids.map_err(|error| Refusal::of_prompt(error, what))?;
        if ids.iter().any(Vec::is_empty) {
            return Err(Refusal::invalid(Some(what), "The prompt has no tokens."));
        }
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        let new = new_tokens(opened.context(), longest, asked.max_new_tokens, what)?;
        Ok(Prompts { opened, ids, max_new_tokens: new.min(most) })
    }

    /// The worker for the model that is meant, started if need be.
    fn open(
        &mut self,
        model: Option<&str>,
        stop: &dyn Fn() -> bool,
    ) -> Result<(&mut Standing, &Arc<Opened>), Refusal> {
        let offer = match &self.open {
            Some((_, opened)) => opened.offer.clone(),
            None => (self.source)()?,
        };
        if !offer.is_meant_by(model) {
            return Err(Refusal::no_such_model(model.unwrap_or_default(), &offer.name));
        }
        let open = match self.open.take() {
            Some(open) => open,
            None => Opened::open(&self.config, offer, stop).map_err(|error| {
                if !error.is_a_stop() {
                    tracing::error!("no requests can be read: {}", in_one_line(&error));
                }
                Refusal::of(&error)
            })?,
        };
        let (standing, opened) = self.open.insert(open);
        Ok((standing, opened))
    }
}

/// A bias for a token that the model has not would be passed over without a word.
fn biases_are_of(vocab_size: usize, sampling: &SamplingOptions) -> Result<(), Refusal> {
    match sampling.logit_bias.keys().find(|id| **id as usize >= vocab_size) {
        Some(id) => {
            let message = format!("logit_bias: this model has {vocab_size} tokens, and no {id}.");
            Err(Refusal::invalid(Some("logit_bias"), message))
        }
        None => Ok(()),
    }
}

/// Tokens of an answer at most: as many as were asked for, which must fit, or as many as fit.
fn new_tokens(
    context: Option<usize>,
    prompt: usize,
    asked: Option<usize>,
    what: &'static str,
) -> Result<usize, Refusal> {
    let left = context.map_or(usize::MAX, |context| context.saturating_sub(prompt));
    match (context, asked) {
        (Some(context), Some(new)) if new > left => {
            Err(Refusal::context_length(context, prompt, new, what))
        }
        (Some(context), None) if left == 0 => {
            Err(Refusal::context_length(context, prompt, 1, what))
        }
        (_, asked) => Ok(asked.unwrap_or(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_for_a_token_that_there_is() {
        let sampling =
            |id| SamplingOptions { logit_bias: [(id, 1.0)].into(), ..SamplingOptions::default() };
        assert_eq!(biases_are_of(2000, &sampling(1999)), Ok(()));
        assert_eq!(biases_are_of(2000, &sampling(2000)).unwrap_err().param, Some("logit_bias"));
    }

    #[test]
    fn prompt_and_answer_fit_the_context() {
        let new = |prompt, asked| new_tokens(Some(100), prompt, asked, "messages");
        assert_eq!(new(60, None), Ok(40));
        assert_eq!(new(60, Some(40)), Ok(40));
        assert_eq!(new(60, Some(41)).unwrap_err().code, Some("context_length_exceeded"));
        assert_eq!(new(100, None).unwrap_err().code, Some("context_length_exceeded"));
        assert_eq!(new(99, None), Ok(1));
        assert_eq!(new(60, Some(usize::MAX)).unwrap_err().status, 400);
        assert_eq!(new_tokens(None, 60, Some(1 << 20), "prompt"), Ok(1 << 20));
    }
}
