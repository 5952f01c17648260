//! The same as a picture: bars, one panel for each measure.

use std::fmt::Write as _;

use super::{
    names::is_ours,
    table::{Measure, Place, Unit},
};
use crate::contest::Times;

/// Width of the picture.
const WIDTH: usize = 820;

/// Where the bars start, after the names.
const BARS: usize = 330;

/// Length of the longest bar; after it there is the figure.
const LONGEST: f64 = 300.0;

/// Height of a bar with the space around it.
const LINE: usize = 20;

/// Height of a title with the space around it.
const TITLE: usize = 36;

/// Colours of what ours is compared with, of ours and of the others, on light and dark pages.
const STYLE: &str = "text{font:13px sans-serif;fill:#24292f}.title{font-weight:bold}\
    .first{fill:#8c959f}.ours{fill:#0969da}.other{fill:#bf8700}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.ours{fill:#58a6ff}.other{fill:#d29922}}";

/// Draws all of a place, with what there is to say about it.
pub(super) fn draw(measures: &[Measure], about: &str) -> String {
    let mut body = String::new();
    let mut top = TITLE / 2;
    text(&mut body, 0, top, "", about);
    top += LINE;
    text(
        &mut body,
        0,
        top,
        "",
        "Medians, and their ratios to the first of each kind; shorter is better.",
    );
    for measure in measures {
        top += TITLE;
        text(&mut body, 0, top, "title", measure.name);
        for (number, times) in measure.ways.iter().enumerate() {
            top += LINE;
            bar(&mut body, top, number, measure, times);
        }
    }
    let height = top + LINE;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\">\n<style>{STYLE}</style>\n{body}</svg>\n"
    )
}

fn bar(body: &mut String, top: usize, number: usize, measure: &Measure, times: &Times) {
    let longest = measure
        .ways
        .iter()
        .map(|times| times.median)
        .fold(0.0, f64::max);
    let width = (times.median / longest * LONGEST).max(1.0);
    let class = match number {
        _ if is_ours(times.name) => "ours",
        0 => "first",
        _ => "other",
    };
    text(body, 12, top, "", times.name);
    let (y, height) = (top - 12, LINE - 5);
    // Writing to a String cannot fail.
    let _ = writeln!(
        body,
        "<rect class=\"{class}\" x=\"{BARS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\"/>"
    );
    let ratio = measure.ratio(times);
    let figure = match (measure.place, measure.unit) {
        (Place::Machine, Unit::Seconds) => format!("{ratio:.2} ×"),
        _ => format!("{ratio:.2} × ({})", measure.unit.text(times.median)),
    };
    let _ = writeln!(
        body,
        "<text x=\"{:.1}\" y=\"{top}\">{figure}</text>",
        BARS as f64 + width + 6.0
    );
}

/// The texts are names of ours, in which nothing has to be escaped.
fn text(body: &mut String, left: usize, top: usize, class: &str, words: &str) {
    let _ = writeln!(
        body,
        "<text class=\"{class}\" x=\"{left}\" y=\"{top}\">{words}</text>"
    );
}
