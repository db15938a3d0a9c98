//! What `top` knows and how it reacts: samples come in, keys are pressed. Nothing here touches a terminal.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::rates::{Rates, between};
use super::sheet::Sheet;
use super::views::View;
use crate::printable;
use crate::status::Status;

/// Shortest and longest time between two samples, seconds.
pub const MIN_INTERVAL: f64 = 0.1;
/// See [`MIN_INTERVAL`].
pub const MAX_INTERVAL: f64 = 3600.0;
/// The time between two samples if nobody says otherwise, seconds.
pub const DEFAULT_INTERVAL: f64 = 2.0;
/// Characters of the longest filter.
const MOST_FILTER: usize = 64;

/// How the daemon answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// It was asked and has not answered yet.
    #[default]
    Waiting,
    /// It answered.
    Up,
    /// It did not, and why.
    Down(String),
}

/// What a key is for, beyond what it changed in [`App`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reaction {
    /// Nothing changed.
    Nothing,
    /// Draw anew.
    Redraw,
    /// Draw anew, also what has not changed.
    Repaint,
    /// Ask this often from now on.
    Interval(Duration),
    /// End.
    Quit,
}

/// Everything that `top` knows.
#[derive(Debug)]
pub struct App {
    /// The daemon that is asked.
    pub instance: String,
    /// How it answers.
    pub link: Link,
    /// The last answer.
    pub status: Option<Box<Status>>,
    /// What changed up to it.
    pub rates: Rates,
    /// What is shown.
    pub view: View,
    /// Column and direction by which each view is sorted.
    sorts: [(usize, bool); View::ALL.len()],
    /// Only rows that hold this are shown.
    pub filter: String,
    /// Keys go into the filter.
    pub is_typing: bool,
    /// The keys are shown instead of the view.
    pub is_help: bool,
    /// New samples are not shown.
    pub is_paused: bool,
    /// Rows that are scrolled out at the top.
    pub scroll: usize,
    /// Seconds between two samples.
    pub interval: f64,
}

impl App {
    /// Before the first sample.
    pub fn new(instance: &str, interval: f64, filter: &str) -> Self {
        App {
            instance: instance.to_owned(),
            link: Link::Waiting,
            status: None,
            rates: Rates::default(),
            view: View::Ports,
            sorts: View::ALL.map(|view| (view.first_sort(), view.first_reversed())),
            filter: filter.to_owned(),
            is_typing: false,
            is_help: false,
            is_paused: false,
            scroll: 0,
            interval: interval.clamp(MIN_INTERVAL, MAX_INTERVAL),
        }
    }

    /// Takes an answer, or the sentence why there is none. What a daemon said before it went away is not shown any longer, and
    /// the first answer of the next one has no rates.
    pub fn sample(&mut self, answer: Result<Box<Status>, String>) {
        match answer {
            Ok(status) => {
                self.link = Link::Up;
                if self.is_paused && self.status.is_some() {
                    return;
                }
                self.rates = between(self.status.as_deref(), &status);
                self.status = Some(status);
            }
            Err(sentence) => {
                self.link = Link::Down(printable::line(&sentence).into_owned());
                (self.status, self.rates) = (None, Rates::default());
            }
        }
    }

    /// Column and direction by which the view is sorted.
    pub fn sort(&self) -> (usize, bool) {
        self.sorts[self.view as usize]
    }

    /// The rows of a view, filtered and sorted.
    pub fn sheet(&self, view: View) -> Sheet {
        let mut sheet = view.sheet(&self.rates);
        let (column, reversed) = self.sorts[view as usize];
        sheet.filter(&self.filter);
        sheet.sort(column, reversed);
        sheet
    }

    /// Reacts to a key.
    pub fn key(&mut self, key: KeyEvent) -> Reaction {
        if key.kind == KeyEventKind::Release {
            return Reaction::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c' | 'd') => Reaction::Quit,
                KeyCode::Char('l') => Reaction::Repaint,
                _ => Reaction::Nothing,
            };
        }
        if self.is_typing {
            return self.type_filter(key.code);
        }
        match key.code {
            KeyCode::Char('q') => return Reaction::Quit,
            KeyCode::Esc if self.is_help => self.is_help = false,
            KeyCode::Char('h' | '?') | KeyCode::F(1) => self.is_help = !self.is_help,
            KeyCode::Esc => self.set_filter(String::new()),
            KeyCode::Char('/' | 'f') => (self.is_typing, self.is_help) = (true, false),
            KeyCode::Char('+') => return self.change_interval(0.5),
            KeyCode::Char('-') => return self.change_interval(2.0),
            KeyCode::Char(' ' | 'p') => self.is_paused = !self.is_paused,
            code => return self.move_about(code),
        }
        Reaction::Redraw
    }

    fn move_about(&mut self, code: KeyCode) -> Reaction {
        match code {
            KeyCode::Char(digit @ '1'..='3') => self.show(View::ALL[digit as usize - '1' as usize]),
            KeyCode::Tab => self.show(View::ALL[(self.view as usize + 1) % View::ALL.len()]),
            KeyCode::BackTab => self.show(View::ALL[(self.view as usize + View::ALL.len() - 1) % View::ALL.len()]),
            KeyCode::Left | KeyCode::Char('<') => self.sort_by(-1),
            KeyCode::Right | KeyCode::Char('>') => self.sort_by(1),
            KeyCode::Char('r') => self.sorts[self.view as usize].1 ^= true,
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll = self.scroll.saturating_add(1),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            KeyCode::PageDown => self.scroll = self.scroll.saturating_add(10),
            KeyCode::Home | KeyCode::Char('g') => self.scroll = 0,
            KeyCode::End | KeyCode::Char('G') => self.scroll = usize::MAX,
            _ => return Reaction::Nothing,
        }
        Reaction::Redraw
    }

    fn show(&mut self, view: View) {
        (self.view, self.scroll, self.is_help) = (view, 0, false);
    }

    fn sort_by(&mut self, step: isize) {
        let columns = self.view.columns().len();
        let sort = &mut self.sorts[self.view as usize];
        sort.0 = sort.0.saturating_add_signed(step).min(columns - 1);
    }

    fn set_filter(&mut self, filter: String) {
        (self.filter, self.scroll) = (filter, 0);
    }

    fn type_filter(&mut self, code: KeyCode) -> Reaction {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.set_filter(String::new());
            }
            KeyCode::Backspace => {
                let mut filter = std::mem::take(&mut self.filter);
                filter.pop();
                self.set_filter(filter);
            }
            KeyCode::Char(character)
                if !printable::is_unprintable(character) && self.filter.chars().count() < MOST_FILTER =>
            {
                self.filter.push(character);
                self.scroll = 0;
            }
            _ => return Reaction::Nothing,
        }
        Reaction::Redraw
    }

    fn change_interval(&mut self, factor: f64) -> Reaction {
        self.interval = (self.interval * factor).clamp(MIN_INTERVAL, MAX_INTERVAL);
        Reaction::Interval(Duration::from_secs_f64(self.interval))
    }
}
