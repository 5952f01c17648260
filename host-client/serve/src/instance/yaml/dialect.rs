//! Checks for text that `PyYAML` refuses and libyaml accepts.

use super::{
    YamlError,
    libyaml::{Mark, Parser, Token},
};

/// Checks a text that libyaml has accepted.
///
/// # Errors
///
/// [`YamlError`] at the position that `PyYAML` refuses.
pub(super) fn check(text: &str) -> Result<(), YamlError> {
    let between = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    let mut parser = Parser::new(text);
    let (mut depth, mut end, mut before) = (0_usize, 0, Token::Other);
    loop {
        let (token, start, next_end) = parser.token()?;
        if let Some(tab) = tab_in_gap(between(end, start.index)) {
            return Err(error_at(
                between(0, end + tab),
                "a tab, which cloud-init accepts only inside text",
            ));
        }
        let source = between(start.index, next_end.index);
        match token {
            Token::StreamEnd => return Ok(()),
            Token::FlowStart => depth += 1,
            Token::FlowEnd => depth = depth.saturating_sub(1),
            Token::PlainScalar => check_plain(source, start, depth > 0)?,
            Token::BlockScalar => check_header(source, start)?,
            Token::Tag
                if between(next_end.index, text.len()).starts_with([',', '[', ']', '{', '}']) =>
            {
                return Err(start.error("a space is needed after a tag"));
            }
            Token::Value if before == Token::Value => {
                return Err(start.error("a second ':' after a key"));
            }
            Token::Tag | Token::Value | Token::Other => {}
        }
        before = token;
        end = next_end.index.max(end);
    }
}

/// Checks for characters that YAML 1.1 does not allow (`c-printable`). libyaml refuses them too, but
/// without their position.
///
/// # Errors
///
/// [`YamlError`] at the first such character.
pub(super) fn check_characters(text: &str) -> Result<(), YamlError> {
    let prints = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..);
    for (number, line) in text.split('\n').enumerate() {
        if let Some(column) = line.chars().position(|c| !prints(c)) {
            let what = "a character that YAML does not allow";
            return Err(YamlError::new(number + 1, column + 1, what));
        }
    }
    Ok(())
}

/// The offset of a tab between two tokens, outside of comments.
fn tab_in_gap(gap: &str) -> Option<usize> {
    let is_break = |c: char| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut in_comment = false;
    let is_tab = |character| {
        if is_break(character) {
            in_comment = false;
        }
        in_comment |= character == '#';
        character == '\t' && !in_comment
    };
    gap.find(is_tab)
}

/// An error at the position after `before`.
fn error_at(before: &str, what: &str) -> YamlError {
    let mut lines = before.split('\n');
    let column = lines.next_back().map_or(0, |line| line.chars().count());
    YamlError::new(lines.count() + 1, column + 1, what)
}

fn check_plain(source: &str, start: Mark, in_flow: bool) -> Result<(), YamlError> {
    if source.contains('\t') {
        return Err(start.error("a tab in a text without quotes"));
    }
    if in_flow && source.contains('?') {
        return Err(start.error("a '?' in a text without quotes inside [] or {}"));
    }
    Ok(())
}

/// Checks that `|` or `>` and its indicators are followed by a space or the end of the line.
fn check_header(source: &str, start: Mark) -> Result<(), YamlError> {
    let is_indicator = |c: char| matches!(c, '|' | '>' | '+' | '-' | '0'..='9');
    if source
        .trim_start_matches(is_indicator)
        .starts_with(['\t', '#'])
    {
        return Err(start.error("a space is needed after '|' or '>'"));
    }
    Ok(())
}
