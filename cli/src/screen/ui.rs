//! What the person at the keyboard has chosen, and what their keys do.

use jiff::tz::TimeZone;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::paint::Paint;
use super::scene::Scene;
use crate::control::Request;
use crate::priority::Priority;
use crate::store::{Job, JobState};

/// Everything that the view shows of the person's choices.
#[derive(Debug, Clone)]
pub(crate) struct Ui {
    pub(crate) focus: Focus,
    /// The job that keys act on; without one, the first.
    pub(crate) selected: Option<i64>,
    /// Which sample of the evaluation is shown, from 0.
    pub(crate) sample: usize,
    /// How many of the newest events are scrolled past.
    pub(crate) event: usize,
    pub(crate) help: bool,
    /// What waits for a yes or a no.
    pub(crate) question: Option<Question>,
    /// What came of the last key.
    pub(crate) message: Option<Message>,
    /// Seconds since there was anything new to show, where that is too long.
    pub(crate) silent_s: Option<u64>,
    pub(crate) paint: Paint,
    /// Where times are told.
    pub(crate) zone: TimeZone,
}

/// Which part the arrows move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Focus {
    Queue,
    Sample,
    Events,
}

/// A request that is only made after a yes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    pub(crate) words: String,
    pub(crate) request: Request,
}

/// A sentence at the bottom.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    pub(crate) words: String,
    pub(crate) is_error: bool,
}

/// What a key asks for beyond the view.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Quit,
    Ask(Request),
}

impl Ui {
    /// The view as it begins.
    pub(crate) fn new(colour: bool, zone: TimeZone) -> Self {
        Self {
            focus: Focus::Queue,
            selected: None,
            sample: 0,
            event: 0,
            help: false,
            question: None,
            message: None,
            silent_s: None,
            paint: Paint { colour },
            zone,
        }
    }

    /// Which row of the jobs keys act on.
    pub(crate) fn selected_row(&self, scene: &Scene) -> usize {
        let wanted = |id| scene.jobs.iter().position(|job| job.id == id);
        self.selected.and_then(wanted).unwrap_or(0)
    }

    /// The job that keys act on.
    pub(crate) fn selected_job<'a>(&self, scene: &'a Scene) -> Option<&'a Job> {
        scene.jobs.get(self.selected_row(scene))
    }

    /// Does what a key means within the view, and says what it asks for beyond.
    pub(crate) fn press(&mut self, key: KeyEvent, scene: &Scene) -> Option<Action> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c' | 'd')).then_some(Action::Quit);
        }
        if let Some(question) = self.question.take() {
            return self.decide(question, key.code);
        }
        if self.help {
            self.help = false;
            return None;
        }
        self.message = None;
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Some(Action::Quit),
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Tab => self.focus = self.focus.next(),
            KeyCode::BackTab => self.focus = self.focus.next().next(),
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1, scene),
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1, scene),
            KeyCode::PageUp => self.move_by(-10, scene),
            KeyCode::PageDown => self.move_by(10, scene),
            KeyCode::Home => self.move_by(isize::MIN, scene),
            KeyCode::End => self.move_by(isize::MAX, scene),
            KeyCode::Left => self.sample = self.sample.saturating_sub(1),
            KeyCode::Right => self.sample = (self.sample + 1).min(last_sample(scene)),
            KeyCode::Char('p') => {
                let request = if scene.paused { Request::Resume } else { Request::Pause };
                return Some(Action::Ask(request));
            }
            KeyCode::Char('e') => return Some(Action::Ask(Request::EvalNow)),
            KeyCode::Char('s') => self.ask_to_skip(scene),
            KeyCode::Char('r') => {
                let job = self.selected_job(scene)?.id;
                return Some(Action::Ask(Request::Retry { job }));
            }
            KeyCode::Char('+' | '=') => return self.priority(scene, -1),
            KeyCode::Char('-' | '_') => return self.priority(scene, 1),
            _ => {}
        }
        None
    }

    fn decide(&mut self, question: Question, key: KeyCode) -> Option<Action> {
        match key {
            KeyCode::Char('y' | 'Y') => Some(Action::Ask(question.request)),
            KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc => None,
            _ => {
                self.question = Some(question);
                None
            }
        }
    }

    fn move_by(&mut self, rows: isize, scene: &Scene) {
        let moved = |from: usize, last: usize| from.saturating_add_signed(rows).min(last);
        match self.focus {
            Focus::Queue => {
                let row = moved(self.selected_row(scene), scene.jobs.len().saturating_sub(1));
                self.selected = scene.jobs.get(row).map(|job| job.id);
            }
            Focus::Sample => self.sample = moved(self.sample, last_sample(scene)),
            Focus::Events => {
                self.event = moved(self.event, scene.events.len().saturating_sub(1));
            }
        }
    }

    /// The chosen job where it waits or runs, else the one that is being worked on.
    fn ask_to_skip(&mut self, scene: &Scene) {
        let open = |job: &&Job| matches!(job.state, JobState::Queued | JobState::Running);
        let chosen = self.selected_job(scene).filter(open);
        let running = || scene.jobs.iter().find(|job| job.state == JobState::Running);
        match chosen.or_else(running) {
            Some(job) => {
                let words = format!("pass over job {} ({})?", job.id, job.file_name);
                let request = Request::Skip { job: Some(job.id) };
                self.question = Some(Question { words, request });
            }
            None => self.say("there is no job to pass over"),
        }
    }

    fn priority(&mut self, scene: &Scene, ranks: i64) -> Option<Action> {
        let job = self.selected_job(scene)?;
        let priority = Priority::from_rank(job.priority.rank() + ranks);
        if priority.is_none() {
            self.say(&format!("job {} has priority {} already", job.id, job.priority));
        }
        priority.map(|priority| Action::Ask(Request::Priority { job: job.id, priority }))
    }

    fn say(&mut self, words: &str) {
        self.message = Some(Message { words: words.to_owned(), is_error: true });
    }
}

impl Focus {
    fn next(self) -> Self {
        match self {
            Self::Queue => Self::Sample,
            Self::Sample => Self::Events,
            Self::Events => Self::Queue,
        }
    }
}

fn last_sample(scene: &Scene) -> usize {
    scene.eval.as_ref().map_or(0, |eval| eval.samples.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::example;

    fn ui() -> Ui {
        Ui::new(false, TimeZone::UTC)
    }

    fn press(ui: &mut Ui, scene: &Scene, code: KeyCode) -> Option<Action> {
        ui.press(KeyEvent::new(code, KeyModifiers::NONE), scene)
    }

    #[test]
    fn a_job_is_passed_over_after_a_yes_alone() {
        let (mut ui, scene) = (ui(), example::running());
        let skip = Some(Action::Ask(Request::Skip { job: Some(7) }));
        for (answer, expected) in [('n', None), ('y', skip)] {
            assert_eq!(press(&mut ui, &scene, KeyCode::Char('s')), None);
            assert_eq!(press(&mut ui, &scene, KeyCode::Char('x')), None, "no answer to y/n");
            assert!(ui.question.is_some());
            assert_eq!(press(&mut ui, &scene, KeyCode::Char(answer)), expected);
            assert_eq!(ui.question, None);
        }
    }

    #[test]
    fn keys_act_on_the_chosen_job_wherever_it_has_moved() {
        let (mut ui, mut scene) = (ui(), example::running());
        press(&mut ui, &scene, KeyCode::Down);
        let chosen = ui.selected_job(&scene).unwrap().id;
        scene.jobs.reverse();
        assert_eq!(
            press(&mut ui, &scene, KeyCode::Char('r')),
            Some(Action::Ask(Request::Retry { job: chosen }))
        );
        let request = Request::Priority { job: chosen, priority: Priority::Normal };
        assert_eq!(press(&mut ui, &scene, KeyCode::Char('-')), Some(Action::Ask(request)));
        assert_eq!(press(&mut ui, &scene, KeyCode::Char('+')), None, "it has the highest");
        assert!(ui.message.is_some());
    }

    #[test]
    fn arrows_stay_within_what_there_is() {
        let (mut ui, scene) = (ui(), example::running());
        for focus in [Focus::Queue, Focus::Sample, Focus::Events] {
            assert_eq!(ui.focus, focus);
            press(&mut ui, &scene, KeyCode::End);
            press(&mut ui, &scene, KeyCode::Down);
            press(&mut ui, &scene, KeyCode::Tab);
        }
        assert_eq!(ui.selected_row(&scene), scene.jobs.len() - 1);
        assert_eq!(ui.sample, last_sample(&scene));
        assert_eq!(ui.event, scene.events.len() - 1);
        for _ in 0..3 {
            press(&mut ui, &scene, KeyCode::Home);
            press(&mut ui, &scene, KeyCode::Up);
            press(&mut ui, &scene, KeyCode::Tab);
        }
        assert_eq!((ui.selected_row(&scene), ui.sample, ui.event), (0, 0, 0));
        let empty = Scene::default();
        for code in [KeyCode::Down, KeyCode::Right, KeyCode::Char('r'), KeyCode::Char('s')] {
            assert_eq!(press(&mut ui, &empty, code), None);
        }
    }

    #[test]
    fn control_c_ends_a_question_too() {
        let (mut ui, scene) = (ui(), example::running());
        press(&mut ui, &scene, KeyCode::Char('s'));
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(ui.press(key, &scene), Some(Action::Quit));
        let pause = |paused| {
            press(&mut self::ui(), &Scene { paused, ..Scene::default() }, KeyCode::Char('p'))
        };
        assert_eq!(pause(false), Some(Action::Ask(Request::Pause)));
        assert_eq!(pause(true), Some(Action::Ask(Request::Resume)));
    }
}
