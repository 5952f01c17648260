//! Merges the SSH keys of an instance into the `users` of its user-data and vendor-data, as LXD does.

use super::{
    check::{Format, format},
    yaml::{self, Content, Node},
};

/// Both spellings: cloud-init before 18.3 supports only the second.
const KEY_LISTS: [&str; 2] = ["ssh_authorized_keys", "ssh-authorized-keys"];

/// The key for names of keys to import, such as `gh:name`.
const IMPORT_LIST: &str = "ssh_import_id";

/// The default users of an image, which a list of users must name to keep them.
const IMAGE_USERS: &str = "default";

/// The texts with the keys. A text is `None` if it was missing and needs no keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) user_data: Option<String>,
    pub(super) vendor_data: Option<String>,
}

/// Adds `keys` (`USER:KEY` each) to both texts.
///
/// A text that is not `#cloud-config` is unchanged. So is user-data without `users` if the vendor-data
/// has some, because cloud-init would then use the list of the user-data alone.
pub(super) fn merge(user_data: Option<&str>, vendor_data: Option<&str>, keys: &[&str]) -> Merged {
    let keep = |text: Option<&str>| text.map(str::to_owned);
    if keys.is_empty() {
        return Merged {
            user_data: keep(user_data),
            vendor_data: keep(vendor_data),
        };
    }
    let (user, vendor) = (read(user_data), read(vendor_data));
    let only_vendor_has_users = has_users(vendor.as_ref()) && !has_users(user.as_ref());
    Merged {
        user_data: user
            .filter(|_| !only_vendor_has_users)
            .and_then(|user| with_keys(user, keys))
            .or_else(|| keep(user_data)),
        vendor_data: vendor
            .and_then(|vendor| with_keys(vendor, keys))
            .or_else(|| keep(vendor_data)),
    }
}

type Pairs = Vec<(Node, Node)>;

/// The pairs of a `#cloud-config`; none for a missing text. `None` for every other text.
fn read(text: Option<&str>) -> Option<Pairs> {
    let Some(text) = text else {
        return Some(Vec::new());
    };
    if format(text) != Format::CloudConfig {
        return None;
    }
    match yaml::parse(text).ok()?.map(|root| root.content) {
        None => Some(Vec::new()),
        Some(Content::Mapping(pairs)) => Some(pairs),
        Some(_) => None,
    }
}

fn has_users(pairs: Option<&Pairs>) -> bool {
    pairs.is_some_and(|pairs| find(pairs, "users").is_some_and(|users| !users.is_null()))
}

fn find<'a>(pairs: &'a Pairs, key: &str) -> Option<&'a Node> {
    let of_key = |(name, value): &'a (Node, Node)| (name.as_text() == Some(key)).then_some(value);
    // Cloud-init uses the last of duplicate keys.
    pairs.iter().rev().find_map(of_key)
}

fn put(pairs: &mut Pairs, key: &str, value: Node) {
    let mut known = pairs.iter_mut().rev();
    match known.find(|(name, _)| name.as_text() == Some(key)) {
        Some(pair) => pair.1 = value,
        None => pairs.push((Node::text(key), value)),
    }
}

/// The text with the keys. `None` if the form of its `users` does not allow adding them.
fn with_keys(mut pairs: Pairs, keys: &[&str]) -> Option<String> {
    let mut users = match find(&pairs, "users") {
        None => vec![Node::text(IMAGE_USERS)],
        Some(users) if users.is_null() => vec![Node::text(IMAGE_USERS)],
        Some(users) => list(users)?,
    };
    for (user, key) in keys.iter().filter_map(|key| key.split_once(':')) {
        add(&mut users, user, key.trim());
    }
    put(&mut pairs, "users", Node::new(Content::Sequence(users)));
    let root = Node::new(Content::Mapping(pairs));
    let text = root.to_yaml();
    // A text that cannot be parsed again must not reach a guest.
    yaml::parse(&text).ok()?;
    Some(format!("#cloud-config\n{text}"))
}

/// Users in one of cloud-init's three forms, as a list.
fn list(users: &Node) -> Option<Vec<Node>> {
    match &users.content {
        Content::Sequence(items) => Some(items.clone()),
        Content::Scalar { text, .. } => Some(
            text.split([',', ' '])
                .filter(|name| !name.is_empty())
                .map(Node::text)
                .collect(),
        ),
        // A mapping of names to users: each name becomes a key of its user.
        Content::Mapping(pairs) => pairs
            .iter()
            .map(|(name, user)| match &user.content {
                Content::Mapping(user) => {
                    let mut user = user.clone();
                    put(&mut user, "name", name.clone());
                    Some(Node::new(Content::Mapping(user)))
                }
                Content::Scalar { .. } if user.is_null() => Some(name.clone()),
                _ => None,
            })
            .collect(),
        Content::Alias(_) => None,
    }
}

/// Adds a key to a user, and the user if there is none of that name.
fn add(users: &mut Vec<Node>, user: &str, key: &str) {
    let is_named = |node: &Node| match &node.content {
        Content::Mapping(pairs) => find(pairs, "name").and_then(Node::as_text) == Some(user),
        _ => node.as_text() == Some(user),
    };
    let index = users.iter().position(is_named).unwrap_or_else(|| {
        users.push(Node::text(user));
        users.len() - 1
    });
    let node = &mut users[index];
    if node.as_text().is_some() {
        let name = (Node::text("name"), Node::text(user));
        *node = Node::new(Content::Mapping(vec![name]));
    }
    let Content::Mapping(pairs) = &mut node.content else {
        return;
    };
    let lists = if key.contains(' ') {
        &KEY_LISTS[..]
    } else {
        &[IMPORT_LIST]
    };
    let mut all: Vec<Node> = Vec::new();
    for name in lists {
        let known = match find(pairs, name).map(|node| &node.content) {
            Some(Content::Sequence(items)) => items.iter().map(Node::copy).collect(),
            Some(Content::Scalar { text, .. }) => vec![Node::text(text)],
            _ => Vec::new(),
        };
        for key in known.into_iter().chain([Node::text(key)]) {
            if !all.iter().any(|other| other.content == key.content) {
                all.push(key);
            }
        }
    }
    for name in lists {
        let all = all.iter().map(Node::copy).collect();
        put(pairs, name, Node::new(Content::Sequence(all)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ann:ssh-ed25519 AAAA ann@x";

    fn merged(user: Option<&str>, vendor: Option<&str>) -> (String, String) {
        let merged = merge(user, vendor, &[KEY]);
        (
            merged.user_data.unwrap_or_default(),
            merged.vendor_data.unwrap_or_default(),
        )
    }

    #[test]
    fn a_missing_text_is_created_with_the_user_and_the_default_users() {
        let (user, vendor) = merged(None, None);
        assert_eq!(
            user,
            "#cloud-config\n\"users\":\n  - \"default\"\n  -\n    \"name\": \"ann\"\n    \
             \"ssh_authorized_keys\":\n      - \"ssh-ed25519 AAAA ann@x\"\n    \
             \"ssh-authorized-keys\":\n      - \"ssh-ed25519 AAAA ann@x\"\n"
        );
        assert_eq!(vendor, user);
    }

    #[test]
    fn the_key_is_added_to_those_of_an_existing_user() {
        let text = "#cloud-config\nusers:\n- name: ann\n  ssh-authorized-keys: [old key]\n  \
                    sudo: no\nruncmd: [a]\n";
        let (user, _) = merged(Some(text), None);
        assert_eq!(user.matches("old key").count(), 2, "{user}");
        assert_eq!(user.matches("AAAA").count(), 2, "{user}");
        assert!(user.contains("sudo: no\n"), "{user}");
        assert!(!user.contains("default"), "{user}");
    }

    #[test]
    fn all_three_forms_of_users_are_supported() {
        for users in [
            "[default, bob]",
            "default, bob",
            "{default: , bob: {gecos: B}}",
        ] {
            let text = format!("#cloud-config\nusers: {users}\n");
            let (user, _) = merged(Some(&text), None);
            assert!(user.contains("default") && user.contains("bob"), "{user}");
            assert!(user.contains("AAAA"), "{user}");
        }
    }

    #[test]
    fn user_data_is_unchanged_if_only_the_vendor_data_has_users() {
        let vendor = "#cloud-config\nusers: [default]\n";
        let (user, merged_vendor) = merged(None, Some(vendor));
        assert_eq!(user, "");
        assert!(merged_vendor.contains("AAAA"));
        let text = "#cloud-config\na: b\n";
        assert_eq!(merged(Some(text), Some(vendor)).0, text);
    }

    #[test]
    fn a_script_is_unchanged() {
        let (user, vendor) = merged(Some("#!/bin/sh\n"), None);
        assert_eq!(user, "#!/bin/sh\n");
        assert!(vendor.contains("AAAA"));
    }

    #[test]
    fn a_key_without_a_space_is_the_name_of_a_key_to_import() {
        let merged = merge(None, None, &["ann:gh:ann"]);
        let text = merged.user_data.unwrap();
        assert!(
            text.contains("ssh_import_id") && text.contains("gh:ann"),
            "{text}"
        );
        assert!(!text.contains("authorized"), "{text}");
    }

    #[test]
    fn no_keys_change_nothing() {
        let merged = merge(Some("#cloud-config\n# c\na: b\n"), None, &[]);
        assert_eq!(merged.user_data.unwrap(), "#cloud-config\n# c\na: b\n");
        assert_eq!(merged.vendor_data, None);
    }
}
