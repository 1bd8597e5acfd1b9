//! `chandler status --watch`: the daemon over the whole screen.
//!
//! A thread reads the database and asks the daemon ([`source`]); this one draws what came of it
//! ([`view`], a pure function) and takes keys ([`ui`]). A daemon that ends is shown as ended, and
//! one that starts again as running again. The terminal is given back on every way out ([`raw`]).

#[cfg(test)]
mod example;
mod paint;
mod raw;
mod scene;
mod source;
mod ui;
mod view;

use std::io;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use self::raw::Screen;
use self::scene::Scene;
use self::source::{News, Source};
use self::ui::{Action, Message, Ui};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::logging::colour_is_wanted;
use crate::state_dir::StateDir;

/// How long a key is waited for before it is looked whether there is anything new.
const TICK: Duration = Duration::from_millis(100);
/// How long a sentence at the bottom stays.
const MESSAGE_STAYS: Duration = Duration::from_secs(8);
/// From here on it is shown that nothing new is heard.
const SILENCE: Duration = Duration::from_secs(3);

/// Shows the daemon of a state directory until somebody quits.
pub(crate) fn watch(state: &StateDir) -> Result<Exit, Failure> {
    let failed = |error: io::Error| {
        let error = anyhow::Error::new(error).context("cannot draw on this terminal");
        let hint = "`chandler status` prints the same once, `--json` for scripts";
        Failure::new(Exit::Error, error, Some(hint.to_owned()))
    };
    let source = Source::start(state).map_err(failed)?;
    let mut screen = Screen::take().map_err(failed)?;
    let shown = show(&mut screen, &source).map_err(failed);
    drop(screen);
    shown.map(|()| Exit::Ok)
}

/// The scene, and what has to be known besides to draw it.
struct Shown {
    scene: Scene,
    ui: Ui,
    heard: Instant,
    message_since: Instant,
}

fn show(screen: &mut Screen, source: &Source) -> io::Result<()> {
    let colour = colour_is_wanted(true);
    let now = Instant::now();
    let mut shown = Shown {
        scene: source.first(),
        ui: Ui::new(colour, TimeZone::system()),
        heard: now,
        message_since: now,
    };
    let mut changed = true;
    while !screen.is_to_end() {
        changed |= shown.listen(source.news())?;
        if std::mem::take(&mut changed) {
            screen.terminal().draw(|frame| view::draw(frame, &shown.scene, &shown.ui))?;
        }
        if !event::poll(TICK)? {
            continue;
        }
        changed = true;
        match event::read()? {
            Event::Key(key) if key.kind != KeyEventKind::Release => {
                match shown.ui.press(key, &shown.scene) {
                    Some(Action::Quit) => return Ok(()),
                    Some(Action::Ask(request)) => source.ask(request),
                    None => {}
                }
                shown.message_since = Instant::now();
            }
            // A terminal that was cleared from outside is drawn anew, too.
            Event::Resize(..) => screen.terminal().clear()?,
            _ => {}
        }
    }
    Ok(())
}

impl Shown {
    /// Takes in what the source has to tell; says whether there is anything new to draw.
    fn listen(&mut self, news: &Receiver<News>) -> io::Result<bool> {
        let mut changed = false;
        loop {
            match news.try_recv() {
                Ok(News::Scene(scene)) => {
                    self.scene = *scene;
                    self.heard = Instant::now();
                }
                Ok(News::Answer(message)) => {
                    self.ui.message = Some(message);
                    self.message_since = Instant::now();
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("the thread that reads has ended"));
                }
            }
            changed = true;
        }
        let silence = self.heard.elapsed();
        let silent_s = (silence >= SILENCE).then_some(silence.as_secs());
        changed |= std::mem::replace(&mut self.ui.silent_s, silent_s) != silent_s;
        if self.ui.message.is_some() && self.message_since.elapsed() >= MESSAGE_STAYS {
            self.ui.message = None;
            changed = true;
        }
        Ok(changed)
    }
}

impl Message {
    fn of(answer: Result<String, Failure>) -> Self {
        match answer {
            Ok(words) => Self { words, is_error: false },
            Err(failure) => {
                let hint = failure.hint.map_or_else(String::new, |hint| format!(" ({hint})"));
                Self { words: format!("{}{hint}", failure.error), is_error: true }
            }
        }
    }
}
