//! From events to requests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use reqwest::Client;
use tokio::sync::{mpsc, watch};

use super::courier::{Verdict, send};
use super::desktop::Desktop;
use super::message::{Notice, Origin, body};
use super::outgoing::{Hook, OLDEST_MS, Outgoing, Place, Unsaved, age_ms, loose_key, wanted_by};
use super::schedule::wait_after;
use crate::config::NotifyConfig;
use crate::failure::in_one_line;
use crate::store::{Event, LONGEST_WAIT_MS, Store, StoreError};

/// How often it is looked whether there is something to tell.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long what is left to say may take when the daemon ends.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// The desktop shows nothing that is older than this.
const FRESH_MS: i64 = 10 * 60 * 1000;
/// Parcels of a webhook that are looked at to find one to send.
const LOOKED_AT: usize = 64;

pub(super) struct Sender {
    hooks: Vec<Hook>,
    desktop: Option<Desktop>,
    origin: Origin,
    store: Store,
    client: Client,
    loose: Vec<Outgoing>,
    unsaved: BTreeMap<i64, Unsaved>,
    /// Whether it was said that the database does not answer.
    told_trouble: bool,
}

impl Sender {
    pub(super) fn new(
        store: Store,
        client: Client,
        origin: Origin,
        config: &NotifyConfig,
    ) -> Result<Self, StoreError> {
        let hooks: Vec<Hook> = config.webhooks.0.iter().map(Hook::new).collect();
        store.begin_outbox()?;
        let names: Vec<_> = hooks.iter().map(|hook| hook.name.clone()).collect();
        let forgotten = store.forget_other_hooks(&names)?;
        if forgotten > 0 {
            tracing::warn!("{forgotten} messages to webhooks that are gone are not sent any more");
        }
        Ok(Self {
            hooks,
            desktop: config.desktop.then(Desktop::default),
            origin,
            store,
            client,
            loose: Vec::new(),
            unsaved: BTreeMap::new(),
            told_trouble: false,
        })
    }

    /// Tells until `ends` says so, and then what is left to say, for a while.
    pub(super) async fn work(
        mut self,
        mut ends: watch::Receiver<bool>,
        mut urgent: mpsc::UnboundedReceiver<Notice>,
    ) {
        loop {
            let is_ending = *ends.borrow_and_update();
            while let Ok(notice) = urgent.try_recv() {
                self.take_loose(&notice);
            }
            self.follow();
            let delivered = self.deliver(&ends).await;
            if is_ending {
                let until = Instant::now() + LAST_WORDS;
                while Instant::now() < until && self.deliver(&ends).await > 0 {}
                return;
            }
            if delivered == 0 {
                // A sender that is gone is an end as well.
                let _ = tokio::time::timeout(LOOK_EVERY, ends.changed()).await;
            }
        }
    }

    /// Makes parcels of what happened, and shows it on the desktop.
    fn follow(&mut self) {
        let now = now_ms();
        loop {
            let hooks = &self.hooks;
            let wanted = |event: &Event| wanted_by(hooks, event, now);
            match self.store.fill_outbox(now, &wanted) {
                Ok(events) if events.is_empty() => break,
                Ok(events) => events.iter().for_each(|event| self.show(event, now)),
                Err(error) => {
                    self.trouble(&error);
                    return;
                }
            }
        }
        self.told_trouble = false;
    }

    fn show(&mut self, event: &Event, now_ms: i64) {
        let Some(desktop) = &mut self.desktop else { return };
        if let Some(notice) = Notice::of(event)
            && age_ms(event, now_ms) < FRESH_MS
        {
            desktop.show(&notice);
        }
    }

    fn take_loose(&mut self, notice: &Notice) {
        if let Some(desktop) = &mut self.desktop {
            desktop.show(notice);
        }
        for (index, hook) in self.hooks.iter().enumerate() {
            if hook.webhook.wants(notice.topic) {
                self.loose.push(Outgoing {
                    hook: index,
                    key: loose_key(notice, &self.origin, &hook.name),
                    notice: notice.clone(),
                    created_ms: now_ms(),
                    failures: 0,
                    place: Place::Loose { next_ms: 0 },
                });
            }
        }
    }

    /// Sends what is due, one to each webhook at a time; how many were taken.
    async fn deliver(&mut self, ends: &watch::Receiver<bool>) -> usize {
        let now = now_ms();
        let batch: Vec<Outgoing> =
            (0..self.hooks.len()).filter_map(|index| self.next_for(index, now)).collect();
        let sends = batch.iter().map(|outgoing| {
            let hook = &self.hooks[outgoing.hook].webhook;
            let body = body(&outgoing.notice, &outgoing.key, &self.origin, hook.format);
            let sent = send(&self.client, hook, &outgoing.key, body);
            let ends = ends.clone();
            async move {
                tokio::select! {
                    verdict = sent => Some(verdict),
                    // Whether it arrived is not known: it is sent again.
                    () = last_words_are_over(ends) => None,
                }
            }
        });
        let verdicts = join_all(sends).await;
        let mut delivered = 0;
        for (outgoing, verdict) in batch.into_iter().zip(verdicts) {
            delivered += usize::from(matches!(verdict, Some(Verdict::Delivered(_))));
            match verdict {
                Some(verdict) => self.settle(outgoing, verdict),
                None => self.keep(outgoing, now_ms()),
            }
        }
        delivered
    }

    /// What one webhook is to be sent next, taken from where it is kept if that is here.
    fn next_for(&mut self, index: usize, now: i64) -> Option<Outgoing> {
        self.save_unsaved();
        let hook = &self.hooks[index];
        let until_ms = hook.quiet_until_ms;
        if until_ms > now && until_ms <= now + LONGEST_WAIT_MS {
            return None;
        }
        let is_due = |outgoing: &Outgoing| {
            outgoing.hook == index
                && matches!(outgoing.place, Place::Loose { next_ms } if next_ms <= now)
        };
        if let Some(at) = self.loose.iter().position(is_due) {
            return Some(self.loose.remove(at));
        }
        let due = match self.store.due_parcels(&hook.name, now, LOOKED_AT) {
            Ok(due) => due,
            Err(error) => {
                self.trouble(&error);
                return None;
            }
        };
        let is_free = |id: &i64| match self.unsaved.get(id) {
            None => true,
            Some(Unsaved::Until(time)) => *time <= now,
            Some(Unsaved::Gone) => false,
        };
        due.into_iter().filter(|parcel| is_free(&parcel.id)).find_map(|parcel| {
            Some(Outgoing {
                hook: index,
                notice: Notice::of(&parcel.event)?,
                key: parcel.key,
                created_ms: parcel.created_ms,
                failures: parcel.failures,
                place: Place::Parcel(parcel.id),
            })
        })
    }

    fn settle(&mut self, mut outgoing: Outgoing, verdict: Verdict) {
        let now = now_ms();
        let place = self.hooks[outgoing.hook].webhook.place();
        match verdict {
            Verdict::Delivered(status) => {
                tracing::debug!("webhook {place}: {status}");
                self.forget(&outgoing);
            }
            Verdict::Later { why, .. } if now - outgoing.created_ms > OLDEST_MS => {
                self.give_up(&outgoing, &place, &why);
            }
            Verdict::Never { why } => self.give_up(&outgoing, &place, &why),
            Verdict::Later { why, wait, all } => {
                outgoing.failures += 1;
                let wait = wait.unwrap_or_else(|| wait_after(outgoing.failures, &outgoing.key));
                let next_ms = now + i64::try_from(wait.as_millis()).unwrap_or(OLDEST_MS);
                let words = format!("webhook {place}: {why}; again in {} s", wait.as_secs());
                match outgoing.failures {
                    1 => tracing::warn!("{words}"),
                    _ => tracing::debug!("{words}"),
                }
                if all {
                    self.quiet(outgoing.hook, next_ms);
                }
                self.postpone(outgoing, next_ms);
            }
        }
    }

    /// Nothing goes to a receiver that does not answer, or asks for peace.
    fn quiet(&mut self, index: usize, until_ms: i64) {
        let hook = &mut self.hooks[index];
        hook.quiet_until_ms = until_ms;
        if let Err(error) = self.store.postpone_hook(&hook.name, until_ms) {
            self.trouble(&error);
        }
    }

    fn postpone(&mut self, outgoing: Outgoing, next_ms: i64) {
        if let Place::Parcel(id) = outgoing.place
            && let Err(error) = self.store.postpone_parcel(id, next_ms)
        {
            self.unsaved.insert(id, Unsaved::Until(next_ms));
            self.trouble(&error);
        }
        self.keep(outgoing, next_ms);
    }

    /// Puts back what is kept here alone.
    fn keep(&mut self, outgoing: Outgoing, next_ms: i64) {
        if matches!(outgoing.place, Place::Loose { .. }) {
            self.loose.push(Outgoing { place: Place::Loose { next_ms }, ..outgoing });
        }
    }

    fn forget(&mut self, outgoing: &Outgoing) {
        if let Place::Parcel(id) = outgoing.place
            && let Err(error) = self.store.forget_parcel(id)
        {
            self.unsaved.insert(id, Unsaved::Gone);
            self.trouble(&error);
        }
    }

    fn give_up(&mut self, outgoing: &Outgoing, place: &str, why: &str) {
        let Notice { topic, job, run, .. } = outgoing.notice;
        let words = format!("webhook {place} was not told of {topic}: {why}");
        tracing::warn!("{words}");
        if let Err(error) = self.store.record_event("undelivered", job, run, &words, None) {
            self.trouble(&error);
        }
        self.forget(outgoing);
    }

    /// Notes what could not be noted before.
    fn save_unsaved(&mut self) {
        let store = &self.store;
        self.unsaved.retain(|id, unsaved| match unsaved {
            Unsaved::Gone => store.forget_parcel(*id).is_err(),
            Unsaved::Until(time) => store.postpone_parcel(*id, *time).is_err(),
        });
    }

    /// Said once until the database answers again.
    fn trouble(&mut self, error: &StoreError) {
        if !std::mem::replace(&mut self.told_trouble, true) {
            tracing::warn!("the outbox of notify waits: {}", in_one_line(error));
        }
    }
}

async fn last_words_are_over(mut ends: watch::Receiver<bool>) {
    // A sender that is gone is an end as well.
    let _ = ends.wait_for(|ending| *ending).await;
    tokio::time::sleep(LAST_WORDS).await;
}

fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}
