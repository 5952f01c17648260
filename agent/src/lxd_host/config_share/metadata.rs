//! An image's `metadata.yaml`: the targets of its templates.

use std::path::PathBuf;

use vsock_agent_protocol::id;

use vsock_agent_metadata::yaml::{self, Node, YamlError};

/// A template of the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Template {
    /// The path in the guest.
    pub(super) target: PathBuf,
    /// The file name in the share, without the suffix of rendered templates.
    pub(super) name: String,
    /// Whether an existing file is left unchanged.
    pub(super) create_only: bool,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mode: Option<u32>,
}

/// An error in `metadata.yaml`.
#[derive(Debug, thiserror::Error)]
pub(super) enum MetadataError {
    /// It is not supported YAML.
    #[error("metadata.yaml is invalid")]
    Yaml(#[from] YamlError),
    /// A value has the wrong type.
    #[error("invalid value in metadata.yaml: {0}")]
    Shape(String),
}

/// Parses the file. Unknown keys are ignored.
///
/// # Errors
///
/// The first [`MetadataError`].
pub(super) fn templates(text: &str) -> Result<Vec<Template>, MetadataError> {
    let root = yaml::parse(text)?;
    let templates = match root.as_ref().and_then(|root| root.get("templates")) {
        None => return Ok(Vec::new()),
        Some(node) if node.is_null() => return Ok(Vec::new()),
        Some(node @ Node::Map(_)) => node,
        Some(_) => return Err(MetadataError::Shape("templates".to_owned())),
    };
    let templates = templates.entries();
    templates
        .map(|(target, keys)| template(target, keys))
        .collect()
}

fn template(target: &str, keys: &Node) -> Result<Template, MetadataError> {
    let wrong = |key: &str| MetadataError::Shape(format!("{key} of template {target}"));
    if !matches!(keys, Node::Map(_)) {
        return Err(wrong("every key"));
    }
    let mut template = Template {
        target: PathBuf::from(target),
        ..Template::default()
    };
    for (key, value) in keys.entries() {
        let Some(text) = value.text().filter(|text| !text.is_empty()) else {
            continue;
        };
        let number = |radix| u32::from_str_radix(text, radix).map_err(|_| wrong(key));
        match key {
            "template" => template.name = text.to_owned(),
            "create_only" => template.create_only = value.truth().ok_or_else(|| wrong(key))?,
            "uid" => template.uid = Some(id::parse(text).ok_or_else(|| wrong(key))?),
            "gid" => template.gid = Some(id::parse(text).ok_or_else(|| wrong(key))?),
            "mode" => template.mode = Some(number(8)?),
            _ => {}
        }
    }
    // The name must be a file in the folder, not a path.
    if template.name.is_empty() || template.name.contains('/') {
        Err(wrong("template"))
    } else {
        Ok(template)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As image builders write it, with the forms that people write by hand.
    const TEXT: &str = r#"
architecture: x86_64
creation_date: 1700000000
properties: {description: "Debian: bookworm (20240101)", os: Debian}
templates:
  /etc/hostname:
    when:
    - create
    - copy
    create_only: false
    template: hostname.tpl
    properties: {}
  "/etc/hosts": { when: [create], create_only: true, template: 'hosts.tpl' }
  /etc/secret: # for root
    template: secret.tpl
    uid: "0"
    gid: 42
    mode: "0640"
"#;

    #[test]
    fn templates_of_an_image_are_parsed() {
        let found = templates(TEXT).unwrap();
        let template = |target: &str, name: &str| Template {
            target: target.into(),
            name: name.to_owned(),
            ..Template::default()
        };
        let hosts = Template {
            create_only: true,
            ..template("/etc/hosts", "hosts.tpl")
        };
        let secret = Template {
            uid: Some(0),
            gid: Some(42),
            mode: Some(0o640),
            ..template("/etc/secret", "secret.tpl")
        };
        assert_eq!(
            found,
            [template("/etc/hostname", "hostname.tpl"), hosts, secret]
        );
    }

    #[test]
    fn metadata_may_be_json() {
        let text = r#"{"templates": {"/a": {"template": "a.tpl", "create_only": true}}}"#;
        let found = templates(text).unwrap();
        assert_eq!(found[0].name, "a.tpl");
        assert!(found[0].create_only);
    }

    #[test]
    fn an_image_may_have_no_templates() {
        for text in ["a: 1", "templates:", "templates: {}", "templates: ~", "{}"] {
            assert_eq!(templates(text).unwrap(), [], "{text}");
        }
    }

    #[test]
    fn an_invalid_value_of_a_template_is_named() {
        for (text, place) in [
            ("templates: [a]", "templates"),
            ("templates: {/a: b}", "template /a"),
            ("templates: {/a: {}}", "template /a"),
            ("templates: {/a: {template: ../b}}", "template /a"),
            (
                "templates: {/a: {template: b, mode: rw}}",
                "mode of template /a",
            ),
            (
                "templates: {/a: {template: b, uid: root}}",
                "uid of template /a",
            ),
            (
                "templates: {/a: {template: b, gid: 4294967295}}",
                "gid of template /a",
            ),
            (
                "templates: {/a: {template: b, create_only: 7}}",
                "create_only of template /a",
            ),
            ("templates: {", "metadata.yaml is invalid"),
        ] {
            let error = templates(text).unwrap_err().to_string();
            assert!(error.contains(place), "{text}: {error}");
        }
    }
}
