//! Checks whether cloud-init can use a value.

mod network;

use super::yaml::{self, Node, YamlError};

/// Prefixes of user-data and vendor-data that cloud-init recognizes (`INCLUSION_TYPES_MAP` in its
/// `handlers/__init__.py`), besides [`CLOUD_CONFIG`].
const OTHER_FORMATS: [&str; 9] = [
    "#!",
    "#include",
    "#part-handler",
    "#cloud-boothook",
    "#cloud-config-archive",
    "#cloud-config-jsonp",
    "## template: jinja",
    "content-type:",
    "mime-version:",
];

/// The prefix of cloud-config data.
const CLOUD_CONFIG: &str = "#cloud-config";

/// Longest host name and longest part of one, in bytes (RFC 1123, section 2.1).
const MAX_HOSTNAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// Longest instance-id, in bytes.
const MAX_INSTANCE_ID_BYTES: usize = 128;

/// The error for text without a value.
const EMPTY: CheckError = CheckError::Kind("a YAML mapping that is not empty");

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// It is not YAML.
    #[error("it is not YAML")]
    Yaml(#[from] YamlError),
    /// It has the wrong form.
    #[error("it must be {0}")]
    Kind(&'static str),
}

/// Returns [`CheckError::Kind`] with the required form unless `fits`.
fn require(fits: bool, form: &'static str) -> Result<(), CheckError> {
    fits.then_some(()).ok_or(CheckError::Kind(form))
}

/// The format of user-data or vendor-data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    CloudConfig,
    Other,
    /// Cloud-init will ignore it.
    Unknown,
}

/// Bytes at the start in which cloud-init looks for `MIME-Version:` (`convert_string` in its
/// `user_data.py`).
const MIME_BYTES: usize = 4096;

/// Detects the format as cloud-init does: by a prefix in any case, after white space.
pub(super) fn format(text: &str) -> Format {
    let head = text.as_bytes().get(..MIME_BYTES).unwrap_or(text.as_bytes());
    let head = String::from_utf8_lossy(head).to_lowercase();
    if head.contains("mime-version:") {
        return Format::Other;
    }
    let start: String = text.trim_start().chars().take(32).collect();
    let start = start.to_ascii_lowercase();
    if OTHER_FORMATS.iter().any(|prefix| start.starts_with(prefix)) {
        Format::Other
    } else if start.starts_with(CLOUD_CONFIG) {
        Format::CloudConfig
    } else {
        Format::Unknown
    }
}

/// Checks user-data or vendor-data. Returns a warning about accepted data that cloud-init will ignore.
///
/// # Errors
///
/// [`CheckError`] for `#cloud-config` that is not a mapping.
pub(super) fn cloud_data(text: &str) -> Result<Option<&'static str>, CheckError> {
    match format(text) {
        Format::CloudConfig => match yaml::parse(text)? {
            None => Ok(None),
            Some(root) => mapping(&root).map(|()| None),
        },
        Format::Other if text.trim_start().starts_with("#!") && !text.starts_with("#!") => {
            Ok(Some(
                "the script will not start: its first line must begin with #!, with nothing before it",
            ))
        }
        Format::Other => Ok(None),
        Format::Unknown => Ok(Some(
            "cloud-init ignores data that begins with none of #cloud-config, #!, #include, \
             Content-Type: and its other prefixes",
        )),
    }
}

/// Checks a network configuration.
///
/// # Errors
///
/// [`CheckError`] for one that makes cloud-init fail, so that the guest has no data or no network.
pub(super) fn network_config(text: &str) -> Result<(), CheckError> {
    network::check(&yaml::parse(text)?.ok_or(EMPTY)?)
}

/// Checks text that is appended to the meta-data: alone, as cloud-init's LXD datasource reads it, and
/// together with the text before it, as other datasources do.
///
/// # Errors
///
/// [`CheckError::Yaml`], or [`CheckError::Kind`] if it is not a mapping that can be appended.
pub(super) fn meta_data(text: &str) -> Result<(), CheckError> {
    const BEFORE: &str = "instance-id: i\nlocal-hostname: h\n";
    let root = yaml::parse(text)?.ok_or(EMPTY)?;
    mapping(&root)?;
    let is_text = |key| root.get(key).is_none_or(Node::is_string);
    require(
        is_text("instance-id") && is_text("local-hostname"),
        "meta-data whose instance-id and local-hostname are text (a number needs quotes)",
    )?;
    require(
        yaml::parse(&format!("{BEFORE}{text}")).is_ok(),
        "a YAML mapping whose keys begin in the first column, without braces around it and \
         without '---', because it is appended to other keys",
    )
}

/// Checks `USER:KEY`.
///
/// # Errors
///
/// [`CheckError::Kind`] if the user or the key is missing or has control characters.
pub(super) fn ssh_key(text: &str) -> Result<(), CheckError> {
    let parts = text.split_once(':');
    let fits = parts.is_some_and(|(user, key)| {
        let user_fits = !user.is_empty() && !user.contains(char::is_whitespace);
        user_fits && !key.trim().is_empty() && !key.trim_end().contains(char::is_control)
    });
    require(
        fits,
        "USER:KEY on one line, the key as in authorized_keys, or an import id such as gh:name",
    )
}

/// Checks a host name.
///
/// # Errors
///
/// [`CheckError::Kind`] if it is not a host name of RFC 1123.
pub(super) fn hostname(text: &str) -> Result<(), CheckError> {
    let label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    require(
        text.len() <= MAX_HOSTNAME_BYTES && text.split('.').all(label),
        "a host name: letters, digits and '-', in parts of at most 63 with '.' between them",
    )
}

/// Checks an instance-id.
///
/// # Errors
///
/// [`CheckError::Kind`] if it is empty, too long, or has other characters.
pub(super) fn instance_id(text: &str) -> Result<(), CheckError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    require(
        (1..=MAX_INSTANCE_ID_BYTES).contains(&text.len()) && text.bytes().all(fits),
        "letters, digits, '-', '_', '.' and ':', at most 128",
    )
}

/// Checks a boolean.
///
/// # Errors
///
/// [`CheckError::Kind`] if it is neither `true` nor `false`.
pub(super) fn boolean(text: &str) -> Result<(), CheckError> {
    require(matches!(text, "true" | "false"), "true or false")
}

fn mapping(root: &Node) -> Result<(), CheckError> {
    require(root.is_mapping(), "a YAML mapping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_config_must_be_a_mapping_and_other_formats_are_accepted() {
        assert_eq!(cloud_data("#cloud-config\na: b\n"), Ok(None));
        assert_eq!(cloud_data("#cloud-config\n"), Ok(None));
        for text in [
            "#!/bin/sh\nx: [",
            "#include\nhttp://x",
            "Content-Type: multipart/mixed",
            "## template: jinja\n#cloud-config\n{{",
        ] {
            assert_eq!(cloud_data(text), Ok(None), "{text}");
        }
        assert_eq!(cloud_data("From x Mon\nMIME-Version: 1.0\n"), Ok(None));
        assert!(
            cloud_data("echo hello")
                .unwrap()
                .unwrap()
                .contains("ignores")
        );
        assert!(
            cloud_data("\n#!/bin/sh\n")
                .unwrap()
                .unwrap()
                .contains("first line")
        );
        assert_eq!(cloud_data("\n#cloud-config\na: b\n"), Ok(None));
        cloud_data("#cloud-config\n- a\n").unwrap_err();
        assert_eq!(cloud_data("#cloud-config\n{}\n"), Ok(None));
        let Err(CheckError::Yaml(error)) = cloud_data("#cloud-config\na: b: c\n") else {
            panic!("accepted")
        };
        assert_eq!((error.line, error.column), (2, 5));
    }

    #[test]
    fn a_network_config_must_not_be_empty() {
        network_config("version: 2\n").unwrap();
        for text in ["", "# nothing", "[]", "{}", "text", "a: [", "~"] {
            network_config(text).unwrap_err();
        }
    }

    #[test]
    fn meta_data_must_be_a_mapping_that_can_be_appended() {
        meta_data("public-keys: [a]\ninstance-id: mine\n").unwrap();
        meta_data("local-hostname: '123'\nregion: 1\n").unwrap();
        for text in [
            "{a: b}",
            "---\na: b\n",
            "# nothing\n",
            "text",
            "- a\n",
            "local-hostname: 123\n",
            "local-hostname: 1:30\n",
            "local-hostname: 1.0e+3\n",
            "local-hostname: 1.5\n",
            "local-hostname: on\n",
            "local-hostname: [a]\n",
            "local-hostname: 2020-01-01\n",
            "local-hostname:\n",
            "instance-id: 123\n",
        ] {
            meta_data(text).expect_err(text);
        }
        for text in [
            "local-hostname: 10.0.0.1\n",
            "local-hostname: 1a\n",
            "local-hostname: !!str 1\n",
        ] {
            meta_data(text).unwrap();
        }
        let Err(CheckError::Yaml(error)) = meta_data("a: b\nc: d: e") else {
            panic!("accepted")
        };
        assert_eq!((error.line, error.column), (2, 5));
    }

    #[test]
    fn names_ids_and_ssh_keys_have_their_form() {
        ssh_key("ann:ssh-ed25519 AAAA ann@x\n").unwrap();
        ssh_key("ann:gh:ann").unwrap();
        for text in ["", "ann", ":ssh-rsa A", "ann:", "a b:ssh-rsa A", "ann:a\nb"] {
            ssh_key(text).unwrap_err();
        }
        hostname("web-1.example.org").unwrap();
        for text in ["", "-a", "a-", "a..b", "a_b", "ä", &"x".repeat(64)] {
            hostname(text).unwrap_err();
        }
        instance_id("i-1").unwrap();
        for text in ["", "a b", "a\n", "a\"", &"x".repeat(200)] {
            instance_id(text).unwrap_err();
        }
    }
}
