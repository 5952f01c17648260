//! Tokens and events of libyaml.
#![expect(
    unsafe_code,
    reason = "libyaml's interface is C's; all use of it is in this file"
)]

use std::{
    ffi::{CStr, c_char},
    mem::MaybeUninit,
};

use libyaml_rs as sys;

use super::YamlError;

/// A position: line and column from 0, index in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) index: usize,
    pub(super) line: usize,
    pub(super) column: usize,
}

impl From<sys::yaml_mark_t> for Mark {
    fn from(mark: sys::yaml_mark_t) -> Self {
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            index: number(mark.index),
            line: number(mark.line),
            column: number(mark.column),
        }
    }
}

impl Mark {
    pub(super) fn error(self, what: impl Into<String>) -> YamlError {
        YamlError::new(self.line + 1, self.column + 1, what)
    }
}

/// An event of a document.
#[derive(Debug)]
pub(super) enum Event {
    StreamEnd,
    DocumentStart,
    Alias(String),
    Node(Properties, Start),
    /// The end of a sequence or a mapping.
    End,
    Other,
}

/// The start of a node.
#[derive(Debug)]
pub(super) enum Start {
    Scalar { text: String, plain: bool },
    Sequence,
    Mapping,
}

#[derive(Debug, Default)]
pub(super) struct Properties {
    pub(super) anchor: Option<String>,
    /// Complete, such as `tag:yaml.org,2002:str`.
    pub(super) tag: Option<String>,
}

/// The kinds of tokens that [`dialect`](super::dialect) distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    StreamEnd,
    FlowStart,
    FlowEnd,
    PlainScalar,
    BlockScalar,
    Tag,
    Value,
    Other,
}

/// A parser of one text.
pub(super) struct Parser<'a> {
    /// Boxed, because libyaml keeps its address.
    parser: Box<sys::yaml_parser_t>,
    text: std::marker::PhantomData<&'a str>,
}

impl Drop for Parser<'_> {
    fn drop(&mut self) {
        // SAFETY: `new` initialised it, and it is not used afterwards.
        unsafe { sys::yaml_parser_delete(&raw mut *self.parser) }
    }
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let mut parser = Box::new(MaybeUninit::<sys::yaml_parser_t>::uninit());
        // SAFETY: the address is that of memory for a parser, which the call initialises. It fails
        // only without memory, and this port of libyaml aborts the process then.
        let _ = unsafe { sys::yaml_parser_initialize(parser.as_mut_ptr()) };
        // SAFETY: the call above initialised it, in its place.
        let mut parser = unsafe { parser.assume_init() };
        let address = &raw mut *parser;
        // SAFETY: `parser` is an initialised parser that has no encoding yet.
        unsafe { sys::yaml_parser_set_encoding(address, sys::YAML_UTF8_ENCODING) };
        // SAFETY: the text outlives the parser, by its lifetime, and has this length.
        unsafe { sys::yaml_parser_set_input_string(address, text.as_ptr(), text.len() as u64) };
        Self {
            parser,
            text: std::marker::PhantomData,
        }
    }

    /// The next event and its start. Must not be called after [`Event::StreamEnd`].
    pub(super) fn event(&mut self) -> Result<(Event, Mark), YamlError> {
        let mut event = MaybeUninit::<sys::yaml_event_t>::uninit();
        // SAFETY: both pointers are valid for the call, which writes an event if it succeeds.
        let result = unsafe { sys::yaml_parser_parse(&raw mut *self.parser, event.as_mut_ptr()) };
        if result.fail {
            return Err(self.error());
        }
        // SAFETY: the call succeeded, so there is an event.
        let mut event = unsafe { event.assume_init() };
        let owned = owned(&event);
        let mark = event.start_mark.into();
        // SAFETY: the event is one of libyaml's, and is not used afterwards.
        unsafe { sys::yaml_event_delete(&raw mut event) };
        Ok((owned, mark))
    }

    /// The next token, with its start and end. Must not be called after [`Token::StreamEnd`], nor on a
    /// parser that returns events.
    pub(super) fn token(&mut self) -> Result<(Token, Mark, Mark), YamlError> {
        let mut token = MaybeUninit::<sys::yaml_token_t>::uninit();
        // SAFETY: both pointers are valid for the call, which writes a token if it succeeds.
        let result = unsafe { sys::yaml_parser_scan(&raw mut *self.parser, token.as_mut_ptr()) };
        if result.fail {
            return Err(self.error());
        }
        // SAFETY: the call succeeded, so there is a token.
        let mut token = unsafe { token.assume_init() };
        let kind = kind(&token);
        let marks = (token.start_mark.into(), token.end_mark.into());
        // SAFETY: the token is one of libyaml's, and is not used afterwards.
        unsafe { sys::yaml_token_delete(&raw mut token) };
        Ok((kind, marks.0, marks.1))
    }

    /// Why the last call failed.
    fn error(&self) -> YamlError {
        let what = text_at(self.parser.problem.cast());
        let mark = Mark::from(self.parser.problem_mark);
        mark.error(what.unwrap_or_else(|| "this is not YAML".to_owned()))
    }
}

/// A NUL-terminated text of libyaml's; `None` for a null pointer.
fn text_at(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: libyaml's texts end with a NUL byte and live as long as their event or parser, which
    // all callers still have.
    let text = unsafe { CStr::from_ptr(pointer) };
    Some(text.to_string_lossy().into_owned())
}

fn properties(anchor: *const u8, tag: *const u8) -> Properties {
    Properties {
        anchor: text_at(anchor.cast()),
        tag: text_at(tag.cast()),
    }
}

fn owned(event: &sys::yaml_event_t) -> Event {
    match event.type_ {
        sys::YAML_STREAM_END_EVENT => Event::StreamEnd,
        sys::YAML_DOCUMENT_START_EVENT => Event::DocumentStart,
        sys::YAML_ALIAS_EVENT => {
            // SAFETY: the type shows that this field is the active one.
            let alias = unsafe { event.data.alias };
            Event::Alias(text_at(alias.anchor.cast()).unwrap_or_default())
        }
        sys::YAML_SCALAR_EVENT => {
            // SAFETY: the type shows that this field is the active one.
            let scalar = unsafe { event.data.scalar };
            let length = usize::try_from(scalar.length).unwrap_or_default();
            // SAFETY: libyaml's text at this address has this many bytes.
            let text = unsafe { std::slice::from_raw_parts(scalar.value, length) };
            let start = Start::Scalar {
                text: String::from_utf8_lossy(text).into_owned(),
                plain: scalar.style == sys::YAML_PLAIN_SCALAR_STYLE,
            };
            Event::Node(properties(scalar.anchor, scalar.tag), start)
        }
        sys::YAML_SEQUENCE_START_EVENT => {
            // SAFETY: the type shows that this field is the active one.
            let start = unsafe { event.data.sequence_start };
            Event::Node(properties(start.anchor, start.tag), Start::Sequence)
        }
        sys::YAML_MAPPING_START_EVENT => {
            // SAFETY: the type shows that this field is the active one.
            let start = unsafe { event.data.mapping_start };
            Event::Node(properties(start.anchor, start.tag), Start::Mapping)
        }
        sys::YAML_SEQUENCE_END_EVENT | sys::YAML_MAPPING_END_EVENT => Event::End,
        _ => Event::Other,
    }
}

fn kind(token: &sys::yaml_token_t) -> Token {
    match token.type_ {
        sys::YAML_STREAM_END_TOKEN => Token::StreamEnd,
        sys::YAML_FLOW_SEQUENCE_START_TOKEN | sys::YAML_FLOW_MAPPING_START_TOKEN => {
            Token::FlowStart
        }
        sys::YAML_FLOW_SEQUENCE_END_TOKEN | sys::YAML_FLOW_MAPPING_END_TOKEN => Token::FlowEnd,
        sys::YAML_TAG_TOKEN => Token::Tag,
        sys::YAML_VALUE_TOKEN => Token::Value,
        sys::YAML_SCALAR_TOKEN => {
            // SAFETY: the type shows that this field is the active one.
            match unsafe { token.data.scalar }.style {
                sys::YAML_PLAIN_SCALAR_STYLE => Token::PlainScalar,
                sys::YAML_LITERAL_SCALAR_STYLE | sys::YAML_FOLDED_SCALAR_STYLE => {
                    Token::BlockScalar
                }
                _ => Token::Other,
            }
        }
        _ => Token::Other,
    }
}
