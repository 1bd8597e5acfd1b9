//! Pictures of made-up scenes, as text.

use jiff::tz::TimeZone;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::draw;
use crate::screen::example;
use crate::screen::scene::{Daemon, Scene};
use crate::screen::ui::{Focus, Ui};

fn picture(scene: &Scene, ui: &Ui, (width, height): (u16, u16)) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, scene, ui)).unwrap();
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let rows = buffer.content.chunks(width);
    rows.map(|row| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        format!("{}\n", line.trim_end())
    })
    .collect()
}

fn ui() -> Ui {
    Ui::new(true, TimeZone::UTC)
}

fn scenes() -> [(&'static str, Scene); 5] {
    [
        ("running", example::running()),
        ("idle", example::idle()),
        ("paused", example::paused()),
        ("not_running", example::not_running()),
        ("waiting", example::waiting()),
    ]
}

#[test]
fn every_state_at_every_size() {
    for (name, scene) in scenes() {
        for size in [(120, 36), (80, 24), (40, 12)] {
            let shown = text(&picture(&scene, &ui(), size));
            insta::assert_snapshot!(format!("{name}_{}x{}", size.0, size.1), shown);
        }
    }
}

#[test]
fn questions_help_and_other_parts() {
    let scene = example::running();
    let press = |ui: &mut Ui, code| {
        assert_eq!(ui.press(KeyEvent::new(code, KeyModifiers::NONE), &scene), None);
    };
    let mut asking = ui();
    press(&mut asking, KeyCode::Char('s'));
    assert!(
        text(&picture(&scene, &asking, (80, 24))).contains("pass over job 7 (german.jsonl)? y/n")
    );
    let mut helped = ui();
    press(&mut helped, KeyCode::Char('?'));
    assert!(text(&picture(&scene, &helped, (80, 24))).contains("priority of the chosen job"));
    let mut moved = ui();
    press(&mut moved, KeyCode::Right);
    moved.focus = Focus::Sample;
    let shown = text(&picture(&scene, &moved, (40, 14)));
    assert!(shown.contains("zwei rote Eulen\\u{1b}[2J"), "{shown}");
    assert!(shown.contains("sample 2/2 of held-out"), "{shown}");
    assert!(!shown.contains('\u{1b}'));
    moved.silent_s = Some(12);
    assert!(text(&picture(&scene, &moved, (80, 24))).contains("nothing new for 12 s"));
}

#[test]
fn without_colours_there_are_none() {
    for (_, scene) in scenes() {
        let plain = picture(&scene, &Ui::new(false, TimeZone::UTC), (120, 36));
        let coloured = |buffer: &Buffer| {
            buffer.content.iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
        };
        assert!(!coloured(&plain));
        let painted = picture(&scene, &ui(), (120, 36));
        assert!(coloured(&painted));
        assert_eq!(text(&plain), text(&painted), "colours say nothing that words do not");
    }
}

#[test]
fn no_size_and_no_scene_is_too_strange() {
    let mut strange = example::running();
    strange.daemon = Daemon::Unclear("does\nnot answer".to_owned());
    strange.trouble = Some("cannot open the database".to_owned());
    for point in &mut strange.run.as_mut().unwrap().points {
        (point.loss, point.grad_norm, point.lr) = (f64::NAN, f64::INFINITY, 0.0);
    }
    let many = Scene {
        jobs: (0..500).flat_map(|_| example::running().jobs).collect(),
        ..example::running()
    };
    for scene in [strange, many, Scene::default(), example::running()] {
        for focus in [Focus::Queue, Focus::Sample, Focus::Events] {
            let ui = Ui { focus, help: focus == Focus::Events, ..ui() };
            for size in
                [(1, 1), (2, 40), (300, 2), (10, 5), (39, 11), (70, 20), (100, 30), (250, 90)]
            {
                picture(&scene, &ui, size);
            }
        }
    }
}

/// The figure of the book is what is drawn.
#[test]
fn the_book_shows_this_picture() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/terminal.md");
    let page = std::fs::read_to_string(path).unwrap();
    let shown = text(&picture(&example::running(), &ui(), (80, 24)));
    assert!(page.contains(&shown), "put this into docs/src/terminal.md:\n{shown}");
}
