//! The desk between the threads of the HTTP server and those that read prompts and own the model.
//!
//! ```text
//! submit → unread → (reader thread: tokens) → read → (host thread: an answer) → channel of the client
//! ```
//!
//! It is open, or closed while a job trains, or has ended. Closing refuses who waits, gives the
//! answer that is going on its time, and returns once both threads hold nothing any more.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::form::Finish;
use super::refusal::Refusal;
use super::request::Asked;

/// How often the wishes of others are looked at while the desk is being cleared.
const TICK: Duration = Duration::from_millis(50);

/// What a client is told, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// The answer begins.
    Begun { model: String, prompt_tokens: usize },
    /// More text of a choice.
    Text { choice: usize, text: String },
    /// The end of a choice, after so many tokens.
    Ended { choice: usize, finish: Finish, tokens: usize },
    /// There is no answer, or no more of it.
    Refused(Refusal),
}

/// A request and the channel to whoever asked. Nobody listens any more once that is closed.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) asked: Asked,
    pub(super) client: UnboundedSender<Said>,
}

impl Ticket {
    pub(super) fn refuse(&self, refusal: Refusal) {
        // Whoever is gone needs no answer.
        let _ = self.client.send(Said::Refused(refusal));
    }
}

/// What a thread does next.
#[derive(Debug)]
pub(super) enum Turn<T> {
    Work(T),
    /// Let go of what it holds: [`Desk::has_let_go`] says that it has.
    LetGo,
    End,
}

/// The two threads behind the desk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Reader,
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// What goes on is cut off from then on.
    Closed {
        cut_at: Instant,
    },
    Ended {
        cut_at: Instant,
    },
}

/// What is known of a thread.
#[derive(Debug, Default)]
struct Thread {
    is_busy: bool,
    /// Whether it has a model or a worker in hand.
    holds: bool,
    /// Whether it is to let go although the desk is open: nothing was asked for long.
    rests: bool,
}

#[derive(Debug)]
struct Books<R> {
    state: State,
    unread: VecDeque<Ticket>,
    read: VecDeque<R>,
    threads: [Thread; 2],
    /// Since when nothing was asked and nothing was done.
    quiet_since: Instant,
}

/// What the host is given: a ticket with its tokens, or more.
pub(super) trait Prompted {
    fn ticket(&self) -> &Ticket;
}

/// The desk.
#[derive(Debug)]
pub(super) struct Desk<R> {
    most_waiting: usize,
    books: Mutex<Books<R>>,
    changed: Condvar,
}

impl<R: Prompted> Desk<R> {
    pub(super) fn new(most_waiting: usize) -> Self {
        let books = Books {
            state: State::Open,
            unread: VecDeque::new(),
            read: VecDeque::new(),
            threads: [Thread::default(), Thread::default()],
            quiet_since: Instant::now(),
        };
        Self { most_waiting, books: Mutex::new(books), changed: Condvar::new() }
    }

    /// Puts a request into the queue; what is said about it comes through the channel.
    pub(super) fn submit(&self, asked: Asked) -> Result<UnboundedReceiver<Said>, Refusal> {
        let mut books = self.books();
        match books.state {
            State::Open => {}
            State::Closed { .. } => return Err(Refusal::training()),
            State::Ended { .. } => return Err(Refusal::ending()),
        }
        if books.waiting() >= self.most_waiting {
            // Places of those who are gone are free.
            books.unread.retain(|ticket| !ticket.client.is_closed());
            books.read.retain(|read| !read.ticket().client.is_closed());
        }
        let waiting = books.waiting();
        // Whoever finds both threads at rest does not wait.
        let is_quiet = waiting == 0 && books.threads.iter().all(|thread| !thread.is_busy);
        if waiting >= self.most_waiting && !is_quiet {
            return Err(Refusal::queue_full(waiting));
        }
        let (client, said) = unbounded_channel();
        books.unread.push_back(Ticket { asked, client });
        books.threads.iter_mut().for_each(|thread| thread.rests = false);
        books.quiet_since = Instant::now();
        self.changed.notify_all();
        Ok(said)
    }

    /// Requests that wait, and whether one is being answered.
    pub(super) fn load(&self) -> (usize, bool) {
        let books = self.books();
        (books.waiting(), books.threads[Side::Host as usize].is_busy)
    }

    /// The next request whose prompt is to be read.
    pub(super) fn next_unread(&self) -> Turn<Ticket> {
        self.next(Side::Reader, None, |books| books.unread.pop_front())
    }

    /// The next request that is to be answered. Where for `idle` nothing was asked or done, both
    /// threads let go of what they hold.
    pub(super) fn next_read(&self, idle: Option<Duration>) -> Turn<R> {
        self.next(Side::Host, idle, |books| books.read.pop_front())
    }

    /// Hands a prompt on to the host, with which the reader is done.
    pub(super) fn has_read(&self, read: R) {
        let mut books = self.books();
        books.is_done(Side::Reader);
        match books.state {
            State::Open => books.read.push_back(read),
            State::Closed { .. } => read.ticket().refuse(Refusal::training()),
            State::Ended { .. } => read.ticket().refuse(Refusal::ending()),
        }
        self.changed.notify_all();
    }

    /// Takes those who wait and can be answered beside the one that has its turn, up to `rows`.
    pub(super) fn take_beside(
        &self,
        mut rows: usize,
        fits: impl Fn(&R, usize) -> Option<usize>,
    ) -> Vec<R> {
        let mut books = self.books();
        let (mut taken, mut left) = (vec![], VecDeque::new());
        for read in books.read.drain(..) {
            match fits(&read, rows) {
                Some(more) => {
                    rows -= more;
                    taken.push(read);
                }
                None => left.push_back(read),
            }
        }
        books.read = left;
        taken
    }

    /// Whether a prompt that is being read is not wanted any more.
    pub(super) fn is_closed(&self) -> bool {
        self.books().state != State::Open
    }

    /// Whether an answer that is going on has to end now.
    pub(super) fn cuts_off(&self) -> bool {
        match self.books().state {
            State::Open => false,
            State::Closed { cut_at } | State::Ended { cut_at } => Instant::now() >= cut_at,
        }
    }

    /// A thread has done its work but for the last word to its client, who may ask the next thing as
    /// soon as that is heard, and then finds it at rest. It still holds what it holds.
    pub(super) fn is_done(&self, side: Side) {
        self.books().is_done(side);
        self.changed.notify_all();
    }

    /// A thread has nothing in hand any more.
    pub(super) fn has_let_go(&self, side: Side) {
        self.books().threads[side as usize].holds = false;
        self.changed.notify_all();
    }

    /// Closes; what goes on has `grace`. Returns when nothing is held, and calls `alive` until then.
    pub(super) fn close(&self, grace: Duration, alive: &dyn Fn()) {
        self.leave(State::Closed { cut_at: Instant::now() + grace }, &Refusal::training());
        let mut books = self.books();
        while books.threads.iter().any(|thread| thread.is_busy || thread.holds) {
            alive();
            let waited = self.changed.wait_timeout(books, TICK);
            books = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Opens again, unless it has ended.
    pub(super) fn open(&self) {
        let mut books = self.books();
        if matches!(books.state, State::Closed { .. }) {
            books.state = State::Open;
        }
    }

    /// Ends; what goes on has `grace`. The threads end after that.
    pub(super) fn end(&self, grace: Duration) {
        self.leave(State::Ended { cut_at: Instant::now() + grace }, &Refusal::ending());
    }

    fn leave(&self, state: State, refusal: &Refusal) {
        let mut books = self.books();
        books.state = state;
        let (unread, read) = (std::mem::take(&mut books.unread), std::mem::take(&mut books.read));
        unread.iter().chain(read.iter().map(Prompted::ticket)).for_each(|ticket| {
            ticket.refuse(refusal.clone());
        });
        self.changed.notify_all();
    }

    fn next<T>(
        &self,
        side: Side,
        idle: Option<Duration>,
        mut take: impl FnMut(&mut Books<R>) -> Option<T>,
    ) -> Turn<T> {
        let mut books = self.books();
        books.is_done(side);
        self.changed.notify_all();
        loop {
            let state = books.state;
            let is_over = matches!(state, State::Ended { .. });
            let thread = &mut books.threads[side as usize];
            if is_over {
                thread.holds = false;
                return Turn::End;
            }
            if thread.holds && (thread.rests || state != State::Open) {
                return Turn::LetGo;
            }
            if let Some(work) = take(&mut books) {
                let thread = &mut books.threads[side as usize];
                (thread.is_busy, thread.holds) = (true, true);
                return Turn::Work(work);
            }
            match idle.and_then(|idle| books.until_rest(idle)) {
                Some(Duration::ZERO) => {
                    books.threads.iter_mut().for_each(|thread| thread.rests = true);
                    self.changed.notify_all();
                }
                left => {
                    let most = left.unwrap_or(Duration::from_secs(3600));
                    let waited = self.changed.wait_timeout(books, most);
                    books = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Every change is whole before the lock is let go, also where a thread panics.
    fn books(&self) -> MutexGuard<'_, Books<R>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Books<R> {
    fn waiting(&self) -> usize {
        self.unread.len() + self.read.len()
    }

    fn is_done(&mut self, side: Side) {
        if std::mem::take(&mut self.threads[side as usize].is_busy) {
            self.quiet_since = Instant::now();
        }
    }

    /// How long until what either thread holds is let go of, if all stays quiet as it is.
    fn until_rest(&self, idle: Duration) -> Option<Duration> {
        let is_quiet = self.waiting() == 0 && self.threads.iter().all(|thread| !thread.is_busy);
        let holds = self.threads.iter().any(|thread| thread.holds && !thread.rests);
        (is_quiet && holds).then(|| idle.saturating_sub(self.quiet_since.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::request::Face;
    use super::*;

    struct Read(Ticket);

    impl Prompted for Read {
        fn ticket(&self) -> &Ticket {
            &self.0
        }
    }

    fn asked() -> Asked {
        Asked::parse(Face::Completion, br#"{"prompt": "a"}"#, 0).unwrap()
    }

    fn read(desk: &Desk<Read>) {
        let Turn::Work(ticket) = desk.next_unread() else { panic!("a ticket") };
        desk.has_read(Read(ticket));
    }

    #[test]
    fn who_comes_when_all_places_are_taken_is_sent_away() {
        let desk = Desk::<Read>::new(2);
        let mut first = desk.submit(asked()).unwrap();
        let _second = desk.submit(asked()).unwrap();
        assert_eq!(desk.submit(asked()).unwrap_err().status, 429);
        read(&desk);
        assert_eq!(
            desk.submit(asked()).unwrap_err().status,
            429,
            "a prompt that was read waits too"
        );
        assert!(matches!(desk.next_read(None), Turn::Work(_)));
        let third = desk.submit(asked()).unwrap();
        assert_eq!(desk.submit(asked()).unwrap_err().status, 429);
        drop(third);
        assert!(desk.submit(asked()).is_ok(), "whoever is gone does not wait");
        assert!(first.try_recv().is_err());
    }

    #[test]
    fn without_places_one_at_a_time_is_answered() {
        let desk = Desk::<Read>::new(0);
        let said = desk.submit(asked()).unwrap();
        assert_eq!(desk.submit(asked()).unwrap_err().status, 429);
        read(&desk);
        assert!(matches!(desk.next_read(None), Turn::Work(_)));
        assert_eq!(desk.submit(asked()).unwrap_err().status, 429);
        drop(said);
    }

    #[test]
    fn closing_refuses_who_waits_and_waits_for_who_works() {
        let desk = Arc::new(Desk::<Read>::new(4));
        let mut one = desk.submit(asked()).unwrap();
        let mut two = desk.submit(asked()).unwrap();
        read(&desk);
        assert!(matches!(desk.next_read(None), Turn::Work(_)));
        let closed = Arc::new(AtomicBool::new(false));
        let closer = {
            let (desk, closed) = (Arc::clone(&desk), Arc::clone(&closed));
            std::thread::spawn(move || {
                desk.close(Duration::ZERO, &|| {});
                closed.store(true, Ordering::SeqCst);
            })
        };
        let Some(Said::Refused(refusal)) = two.blocking_recv() else { panic!("a refusal") };
        assert_eq!((refusal.status, refusal.kind), (503, "server_busy"));
        assert!(desk.cuts_off() && desk.is_closed() && one.try_recv().is_err());
        assert_eq!(desk.submit(asked()).unwrap_err().status, 503);
        assert!(matches!(desk.next_unread(), Turn::LetGo));
        desk.has_let_go(Side::Reader);
        assert!(!closed.load(Ordering::SeqCst), "the host holds its model");
        assert!(matches!(desk.next_read(None), Turn::LetGo));
        desk.has_let_go(Side::Host);
        closer.join().unwrap();
        desk.open();
        assert!(desk.submit(asked()).is_ok() && !desk.cuts_off());
        desk.end(Duration::ZERO);
        assert!(
            matches!(desk.next_unread(), Turn::End) && matches!(desk.next_read(None), Turn::End)
        );
    }

    /// A client that asks the next thing as soon as it has its answer is not told to come again.
    #[test]
    fn whoever_has_the_last_word_may_ask_at_once() {
        let desk = Desk::<Read>::new(0);
        for _ in 0..2 {
            let _said = desk.submit(asked()).unwrap();
            read(&desk);
            assert!(matches!(desk.next_read(None), Turn::Work(_)));
            assert!(desk.load().1);
            desk.is_done(Side::Host);
            assert!(!desk.load().1);
        }
        let held = |side: Side| desk.books().threads[side as usize].holds;
        assert!(
            held(Side::Host) && held(Side::Reader),
            "what is held is told when it is let go of"
        );
        // One whose prompt was refused, too.
        let _said = desk.submit(asked()).unwrap();
        assert!(matches!(desk.next_unread(), Turn::Work(_)));
        desk.is_done(Side::Reader);
        assert!(desk.submit(asked()).is_ok());
    }

    /// A worker that stands ready is let go of although no model was loaded for it.
    #[test]
    fn a_request_that_was_refused_lets_the_worker_go_in_its_time() {
        let desk = Desk::<Read>::new(4);
        let _said = desk.submit(asked()).unwrap();
        let Turn::Work(_refused) = desk.next_unread() else { panic!("a ticket") };
        let idle = Duration::from_millis(20);
        std::thread::scope(|scope| {
            let host = scope.spawn(|| desk.next_read(Some(idle)));
            std::thread::sleep(3 * idle);
            let rests = || desk.books().threads[Side::Reader as usize].rests;
            assert!(!rests(), "who reads does not rest");
            assert!(matches!(desk.next_unread(), Turn::LetGo));
            desk.has_let_go(Side::Reader);
            desk.end(Duration::ZERO);
            assert!(matches!(host.join().unwrap(), Turn::End));
        });
    }

    #[test]
    fn while_a_prompt_is_read_the_model_stays() {
        let desk = Desk::<Read>::new(4);
        let _said = desk.submit(asked()).unwrap();
        read(&desk);
        assert!(matches!(desk.next_read(None), Turn::Work(_)));
        desk.is_done(Side::Host);
        let _next = desk.submit(asked()).unwrap();
        let Turn::Work(ticket) = desk.next_unread() else { panic!("a ticket") };
        std::thread::scope(|scope| {
            let host = scope.spawn(|| desk.next_read(Some(Duration::ZERO)));
            std::thread::sleep(Duration::from_millis(20));
            desk.has_read(Read(ticket));
            assert!(matches!(host.join().unwrap(), Turn::Work(_)));
        });
    }

    #[test]
    fn after_a_time_without_requests_both_let_go() {
        let desk = Desk::<Read>::new(4);
        let _said = desk.submit(asked()).unwrap();
        read(&desk);
        assert!(matches!(desk.next_read(None), Turn::Work(_)));
        assert!(matches!(desk.next_read(Some(Duration::ZERO)), Turn::LetGo));
        desk.has_let_go(Side::Host);
        assert!(matches!(desk.next_unread(), Turn::LetGo));
    }
}
