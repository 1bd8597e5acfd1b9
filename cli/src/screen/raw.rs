//! The terminal, taken over and given back.

use std::io::{self, Stdout, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The whole screen, ours until this is dropped.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    ending: Arc<AtomicBool>,
    _taken: Taken,
}

/// Gives the terminal back when it is dropped.
struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

impl Screen {
    /// Takes the screen over. A panic gives it back before it is printed, a signal to end makes
    /// [`is_to_end`](Self::is_to_end) true.
    pub(super) fn take() -> io::Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&ending))?;
        }
        let printing = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            printing(panic);
        }));
        enable_raw_mode()?;
        let taken = Taken;
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        let terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        Ok(Self { terminal, ending, _taken: taken })
    }

    /// Whether a signal asked for the end.
    pub(super) fn is_to_end(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    pub(super) fn terminal(&mut self) -> &mut Terminal<CrosstermBackend<Stdout>> {
        &mut self.terminal
    }
}

/// Best effort: a terminal that is gone needs nothing back.
fn give_back() {
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
