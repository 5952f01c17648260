//! User-data and vendor-data as one text, for clouds that have user-data only.
//!
//! cloud-init accepts a MIME message with several parts as user-data, and processes them in order: the
//! second part overrides the first, as user-data override vendor-data. It detects the format of each
//! `text/plain` part by its beginning (`user_data.py`).

use std::borrow::Cow;

use data_encoding::BASE64;

use crate::yaml::{self, Node};

/// Text in which cloud-init looks for the mark of a MIME message, in bytes (`convert_string` of its
/// `user_data.py`).
const MARK_BYTES: usize = 4096;

/// The mark, in lower case.
const MARK: &[u8] = b"mime-version:";

/// Both texts as one. An empty text or an empty `#cloud-config` is left out.
pub(crate) fn combine<'a>(user: Option<&'a str>, vendor: Option<&'a str>) -> Option<Cow<'a, str>> {
    let user = user.filter(|text| !text.is_empty());
    match vendor.filter(|text| has_content(text)) {
        None => user.map(Cow::Borrowed),
        Some(vendor) => match user.filter(|user| *user != vendor && has_content(user)) {
            None => Some(vendor.into()),
            Some(user) => Some(message([vendor, user]).into()),
        },
    }
}

/// Whether it is more than an empty `#cloud-config`.
pub(crate) fn has_content(text: &str) -> bool {
    let rest = text.trim_start().strip_prefix("#cloud-config");
    let is_empty = |rest: &str| match yaml::parse(rest) {
        Ok(None) => true,
        Ok(Some(Node::Map(pairs))) => pairs.is_empty(),
        _ => false,
    };
    match rest.and_then(|rest| rest.split_once('\n')) {
        Some(("" | "\r", rest)) => !is_empty(rest),
        _ => !text.trim().is_empty() && rest.is_none_or(|rest| !rest.trim().is_empty()),
    }
}

/// A MIME message of several parts (RFC 2046, section 5.1).
fn message(parts: [&str; 2]) -> String {
    let boundary = (0_u32..)
        .map(|number| format!("part-of-user-data-{number}"))
        .find(|boundary| parts.iter().all(|part| !part.contains(boundary.as_str())))
        .unwrap_or_default();
    let mut message =
        format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n");
    for part in parts {
        message.push_str(&format!("\n--{boundary}\n"));
        match mime(part) {
            // A message is a part as it is, with its own headers.
            Some(part) => message.push_str(part),
            None => {
                message.push_str(
                    "Content-Type: text/plain; charset=\"utf-8\"\nMIME-Version: 1.0\n\
                     Content-Transfer-Encoding: base64\n\n",
                );
                message.push_str(&BASE64.encode(part.as_bytes()));
            }
        }
    }
    message.push_str(&format!("\n--{boundary}--\n"));
    message
}

/// The text, from its first header on, if it is a MIME message.
fn mime(text: &str) -> Option<&str> {
    let text = text.trim_start();
    let text = match text.strip_prefix("From ") {
        // The envelope of a mailbox is no header.
        Some(envelope) => envelope.split_once('\n')?.1,
        None => text,
    };
    let start = text.as_bytes().get(..MARK_BYTES).unwrap_or(text.as_bytes());
    let has_mark = start
        .to_ascii_lowercase()
        .windows(MARK.len())
        .any(|at| at == MARK);
    let name = text.split_once(':')?.0;
    let is_header = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (has_mark && is_header).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "#!/bin/sh\necho ü\n";
    const CONFIG: &str = "#cloud-config\na: b\n";

    #[test]
    fn one_text_stays_as_it_is() {
        for (user, vendor, expected) in [
            (None, None, None),
            (Some(""), Some(""), None),
            (Some(SCRIPT), None, Some(SCRIPT)),
            (None, Some(CONFIG), Some(CONFIG)),
            (Some(CONFIG), Some(CONFIG), Some(CONFIG)),
            (Some(SCRIPT), Some("#cloud-config\n{}\n"), Some(SCRIPT)),
            (
                Some(SCRIPT),
                Some("#cloud-config\n# nothing\n"),
                Some(SCRIPT),
            ),
            (Some("#cloud-config\n{}\n"), Some(CONFIG), Some(CONFIG)),
            (
                Some("#cloud-config\n{}\n"),
                None,
                Some("#cloud-config\n{}\n"),
            ),
        ] {
            assert_eq!(
                combine(user, vendor).as_deref(),
                expected,
                "{user:?} {vendor:?}"
            );
        }
    }

    #[test]
    fn two_texts_are_parts_and_the_users_is_the_last() {
        let both = combine(Some(SCRIPT), Some(CONFIG)).unwrap();
        let at = |text: &str| both.find(&BASE64.encode(text.as_bytes())).unwrap();
        assert!(at(CONFIG) < at(SCRIPT));
        assert!(both.starts_with("Content-Type: multipart/mixed; "));
        assert_eq!(both.matches("--part-of-user-data-0").count(), 3, "{both}");
    }

    #[test]
    fn a_message_is_a_part_with_its_own_headers() {
        let inner = combine(Some(SCRIPT), Some(CONFIG)).unwrap();
        for text in [
            inner.to_string(),
            format!("From nobody Thu Jan  1\n{inner}"),
        ] {
            let both = combine(Some(&text), Some("#!/bin/true\n")).unwrap();
            assert!(
                both.contains(&format!("--part-of-user-data-1\n{inner}")),
                "{both}"
            );
        }
        let text = "#cloud-config\na: 'MIME-Version: 1.0'\n";
        assert_eq!(mime(text), None);
    }
}
