//! Where our server may answer otherwise than OpenSSH's, and why. Nothing else may differ.

use crate::{
    op::{Argument, Attributes, Damage, Kind, Op},
    outcome::{Name, Outcome},
    wire::kind,
};

/// Whether a request and its two answers, OpenSSH's first, are some difference. Last comes what was
/// asked before.
pub(crate) type Matcher = fn(&Op, &Outcome, &Outcome, &[(usize, Op)]) -> bool;

/// One difference that is meant.
pub(crate) struct Allowed {
    /// What differs, for people.
    pub(crate) what: &'static str,
    /// Why ours does not do the same.
    pub(crate) why: &'static str,
    pub(crate) is: Matcher,
    /// What to make of the trees after it.
    pub(crate) after: After,
}

/// What holds of the two trees after a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// They are the same, and the sequence goes on.
    Same,
    /// They are the same but for times of access. The sequence ends.
    Over,
    /// They are the same but for setuid, setgid and sticky bits. The sequence ends.
    ButSpecialBits,
    /// One server did what the other refused. The sequence ends.
    Apart,
}

/// Status codes (draft-ietf-secsh-filexfer-02, section 7).
const OK: Outcome = Outcome::Status(0);
const EOF: Outcome = Outcome::Status(1);
const FAILURE: Outcome = Outcome::Status(4);
const BAD_MESSAGE: Outcome = Outcome::Status(5);
const OP_UNSUPPORTED: Outcome = Outcome::Status(8);

/// All of them.
pub(crate) const ALLOWED: &[Allowed] = &[
    Allowed {
        what: "MKDIR that ends before its attributes: OpenSSH exits, ours makes the folder",
        why: "there are clients that send none",
        is: |op, theirs, ours, _| {
            let mkdir = op.kind == Kind::Plain(kind::MKDIR) && matches!(op.damage, Damage::Cut(_));
            mkdir && *theirs == Outcome::End && *ours == OK
        },
        after: After::Apart,
    },
    Allowed {
        what: "a request that is cut short, or has a NUL byte inside a path or half an id: OpenSSH \
               exits, ours refuses the request",
        why: "one bad request is no reason to lose the others",
        is: |op, theirs, ours, _| {
            // What sets nothing looks for nothing.
            let nothing = op.attributes().is_some_and(Attributes::is_empty);
            may_end(op) && *theirs == Outcome::End && (failed(ours) || nothing && *ours == OK)
        },
        after: After::Same,
    },
    Allowed {
        what: "a NUL byte at the end of a path: OpenSSH ignores it, ours answers BAD_MESSAGE",
        why: "no file has that name",
        is: |op, theirs, ours, _| has_nul(op) && *theirs != Outcome::End && *ours == BAD_MESSAGE,
        after: After::Apart,
    },
    Allowed {
        what: "a request of a type that nobody knows: OpenSSH does not answer, ours says \
               OP_UNSUPPORTED",
        why: "a client must not wait for ever",
        is: |op, theirs, ours, _| {
            let strange = matches!(op.kind, Kind::Plain(kind) if !(kind::OPEN..=kind::SYMLINK).contains(&kind));
            strange && *theirs == Outcome::Silence && *ours == OP_UNSUPPORTED
        },
        after: After::Same,
    },
    Allowed {
        what: "SETSTAT, FSETSTAT and `lsetstat@openssh.com` of owner and special bits at once: OpenSSH \
               loses the bits, ours keeps them",
        why: "the kernel takes the bits away when the owner changes; who asks for them wants them",
        is: |op, theirs, ours, _| {
            let Some(attributes) = op.attributes() else {
                return false;
            };
            let special = attributes.mode.is_some_and(|mode| mode & 0o6000 != 0);
            let kinds = [
                Kind::Plain(kind::SETSTAT),
                Kind::Plain(kind::FSETSTAT),
                Kind::Extended("lsetstat@openssh.com"),
            ];
            kinds.contains(&op.kind) && special && attributes.owner.is_some() && theirs == ours
        },
        after: After::ButSpecialBits,
    },
    Allowed {
        what: "RENAME onto a link that leads nowhere: OpenSSH replaces the link, ours answers \
               FAILURE",
        why: "RENAME never overwrites, as draft-02 says",
        is: |op, theirs, ours, _| {
            op.kind == Kind::Plain(kind::RENAME) && *theirs == OK && *ours == FAILURE
        },
        after: After::Apart,
    },
    Allowed {
        what: "RENAME that fails: with another status",
        why: "ours is one system call, OpenSSH's are three, and each finds another fault first",
        is: |op, theirs, ours, _| {
            op.kind == Kind::Plain(kind::RENAME) && failed(theirs) && failed(ours) && theirs != ours
        },
        after: After::Same,
    },
    Allowed {
        what: "WRITE to a file opened to append, after a READ at the last offset there is: OpenSSH \
               answers BAD_MESSAGE, ours appends",
        why: "ours keeps no position between requests that one of them could spoil",
        is: |op, theirs, ours, before| {
            let last = Argument::Long(i64::MAX.unsigned_abs());
            let read = before.iter().any(|(_, op)| op.arguments.contains(&last));
            op.kind == Kind::Plain(kind::WRITE) && read && *theirs == BAD_MESSAGE && *ours == OK
        },
        after: After::Apart,
    },
    Allowed {
        what: "`copy-data` from a folder, or between two handles of one file: OpenSSH goes by the names, \
               and may copy for ever; ours goes by the files, and answers FAILURE",
        why: "what is written would be read again until the disk is full",
        is: |op, theirs, ours, _| {
            let refused = *theirs == FAILURE || *ours == FAILURE;
            op.kind == COPY_DATA && refused && theirs != ours
        },
        after: After::Apart,
    },
    Allowed {
        what: "`copy-data` that cannot read or write: OpenSSH may say that all is well, or the end of \
               the file, or another fault",
        why: "nothing was copied",
        is: |op, theirs, ours, _| {
            op.kind == COPY_DATA && status(theirs) && failed(ours) && theirs != ours
        },
        after: After::Over,
    },
    Allowed {
        what: "the line for people in a listing: numbers in place of the owner's and group's names, \
               `?` for control characters",
        why: "the agent asks no name service; a name must not move the cursor",
        is: |op, theirs, ours, _| {
            let listing = op.kind == Kind::Plain(kind::READDIR) && theirs != ours;
            let theirs = without_people(theirs, false);
            listing && theirs.is_some() && theirs == without_people(ours, true)
        },
        after: After::Same,
    },
    Allowed {
        what: "READDIR of a folder whose path leads elsewhere by now, or is closed: OpenSSH finds \
               only what both have, ours what is in the folder",
        why: "ours looks into the folder that was opened, OpenSSH at its path",
        is: |op, theirs, ours, before| {
            let moves = [
                Kind::Plain(kind::RENAME),
                Kind::Plain(kind::REMOVE),
                Kind::Plain(kind::SETSTAT),
                Kind::Plain(kind::FSETSTAT),
                Kind::Extended("lsetstat@openssh.com"),
                Kind::Extended("posix-rename@openssh.com"),
            ];
            let moved = before.iter().any(|(_, op)| moves.contains(&op.kind));
            op.kind == Kind::Plain(kind::READDIR) && moved && is_part(theirs, ours)
        },
        after: After::Same,
    },
    Allowed {
        what: "`limits@openssh.com`: the number of handles",
        why: "OpenSSH names the limit of its process, ours that of a session",
        is: |op, theirs, ours, _| {
            let Kind::Extended("limits@openssh.com") = op.kind else {
                return false;
            };
            // Three numbers before it.
            let same = |a: &[u8], b: &[u8]| a.len() == 32 && b.len() == 32 && a[..24] == b[..24];
            matches!((theirs, ours), (Outcome::Extended(a), Outcome::Extended(b)) if same(&a.0, &b.0))
        },
        after: After::Same,
    },
    Allowed {
        what: "`home-directory`: OpenSSH 9.2 answers its own user's home whoever is asked for, and \
               FAILURE to the empty name; ours the right home, and its own user's",
        why: "a mistake, mended in later versions; the draft gives the empty name this meaning",
        is: |op, theirs, ours, _| {
            let home = op.kind == Kind::Extended("home-directory");
            let one =
                |outcome: &Outcome| matches!(outcome, Outcome::Names(names) if names.len() == 1);
            let empty = op.texts().all(<[u8]>::is_empty) && *theirs == FAILURE;
            home && one(ours) && theirs != ours && (one(theirs) || empty)
        },
        after: After::Same,
    },
];

/// Whether OpenSSH's answer is a listing, or its end, in which no name is that ours has not.
fn is_part(theirs: &Outcome, ours: &Outcome) -> bool {
    match (theirs, ours) {
        (Outcome::Status(_), Outcome::Names(_)) => *theirs == EOF,
        (Outcome::Names(theirs), Outcome::Names(ours)) => {
            let in_ours = |name: &Name| ours.iter().any(|other| other.name == name.name);
            theirs.iter().all(in_ours)
        }
        _ => false,
    }
}

fn status(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Status(_))
}

/// Whether it is a status other than OK and EOF.
fn failed(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Status(code) if *code > 1)
}

/// A listing as it is without names of owners and without control characters. `numbers`: there are
/// numbers, which must be those of the attributes.
fn without_people(outcome: &Outcome, numbers: bool) -> Option<Vec<Name>> {
    let Outcome::Names(names) = outcome else {
        return None;
    };
    let mut names = names.clone();
    for name in &mut names {
        let (words, shown) = &mut name.long;
        let (user, group) = name.attributes.owner?;
        let owners = words.get_mut(2..4)?;
        if numbers && *owners != [user.to_string(), group.to_string()] {
            return None;
        }
        owners.fill(String::new());
        for byte in &mut shown.0 {
            *byte = if byte.is_ascii_control() { b'?' } else { *byte };
        }
    }
    Some(names)
}

/// Whether OpenSSH's server may exit, so that what comes after it is not answered.
pub(crate) fn may_end(op: &Op) -> bool {
    op.damage != Damage::None || has_nul(op) || has_half_id(op)
}

fn has_nul(op: &Op) -> bool {
    let paths = op.texts().filter(|_| op.kind != IDS);
    op.kind != Kind::Plain(kind::WRITE) && { paths }.any(|text| text.contains(&0))
}

const COPY_DATA: Kind = Kind::Extended("copy-data");

const IDS: Kind = Kind::Extended("users-groups-by-id@openssh.com");

fn has_half_id(op: &Op) -> bool {
    op.kind == IDS && op.texts().any(|text| text.len() % 4 != 0)
}
