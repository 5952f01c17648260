//! Where our server may answer otherwise than OpenSSH's, and why. Nothing else may differ.

use crate::{
    op::{Damage, Kind, Op},
    outcome::Outcome,
    wire::kind,
};

/// One difference that is meant.
pub(crate) struct Allowed {
    /// What differs, for people.
    pub(crate) what: &'static str,
    /// Why ours does not do the same.
    pub(crate) why: &'static str,
    /// Whether a request and its two answers, OpenSSH's first, are this difference.
    pub(crate) is: fn(&Op, &Outcome, &Outcome) -> bool,
    /// What to make of the trees after it.
    pub(crate) after: After,
}

/// What holds of the two trees after a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// They are the same, and the sequence goes on.
    Same,
    /// They are the same but for setuid, setgid and sticky bits. The sequence ends.
    ButSpecialBits,
    /// One server did what the other refused. The sequence ends.
    Apart,
}

/// Status codes (draft-ietf-secsh-filexfer-02, section 7).
const OK: Outcome = Outcome::Status(0);
const FAILURE: Outcome = Outcome::Status(4);
const BAD_MESSAGE: Outcome = Outcome::Status(5);
const OP_UNSUPPORTED: Outcome = Outcome::Status(8);

/// All of them.
pub(crate) const ALLOWED: &[Allowed] = &[
    Allowed {
        what: "a request that is cut short, or has a NUL byte inside a path or half an id: OpenSSH \
               exits, ours answers BAD_MESSAGE",
        why: "one bad request is no reason to lose the others",
        is: |op, theirs, ours| {
            let bad = matches!(op.damage, Damage::Cut(_)) || has_nul(op) || has_half_id(op);
            bad && *theirs == Outcome::End && *ours == BAD_MESSAGE
        },
        after: After::Same,
    },
    Allowed {
        what: "a NUL byte at the end of a path: OpenSSH ignores it, ours answers BAD_MESSAGE",
        why: "no file has that name",
        is: |op, theirs, ours| has_nul(op) && theirs != ours && *ours == BAD_MESSAGE,
        after: After::Apart,
    },
    Allowed {
        what: "a request of a type that nobody knows: OpenSSH does not answer, ours says \
               OP_UNSUPPORTED",
        why: "a client must not wait for ever",
        is: |op, theirs, ours| {
            let strange = matches!(op.kind, Kind::Plain(kind) if !(kind::OPEN..=kind::SYMLINK).contains(&kind));
            strange && *theirs == Outcome::Silence && *ours == OP_UNSUPPORTED
        },
        after: After::Same,
    },
    Allowed {
        what: "SETSTAT and FSETSTAT of owner and special bits at once: OpenSSH loses the bits, \
               ours keeps them",
        why: "the kernel takes the bits away when the owner changes; who asks for them wants them",
        is: |op, theirs, ours| {
            let Some(attributes) = op.attributes() else {
                return false;
            };
            let special = attributes.mode.is_some_and(|mode| mode & 0o6000 != 0);
            let kinds = [Kind::Plain(kind::SETSTAT), Kind::Plain(kind::FSETSTAT)];
            kinds.contains(&op.kind) && special && attributes.owner.is_some() && theirs == ours
        },
        after: After::ButSpecialBits,
    },
    Allowed {
        what: "RENAME onto a link that leads nowhere: OpenSSH replaces the link, ours answers \
               FAILURE",
        why: "RENAME never overwrites, as draft-02 says",
        is: |op, theirs, ours| {
            op.kind == Kind::Plain(kind::RENAME) && *theirs == OK && *ours == FAILURE
        },
        after: After::Apart,
    },
    Allowed {
        what: "`limits@openssh.com`: the number of handles",
        why: "OpenSSH names the limit of its process, ours that of a session",
        is: |op, theirs, ours| {
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
        what: "`home-directory` of another user: OpenSSH 9.2 answers its own user's, ours the right \
               one",
        why: "a mistake of OpenSSH's server, mended in later versions",
        is: |op, theirs, ours| {
            let home = Kind::Extended("home-directory");
            let names =
                |outcome: &Outcome| matches!(outcome, Outcome::Names(names) if names.len() == 1);
            op.kind == home && names(theirs) && names(ours)
        },
        after: After::Same,
    },
];

fn has_nul(op: &Op) -> bool {
    let paths = op.texts().filter(|_| op.kind != IDS);
    op.kind != Kind::Plain(kind::WRITE) && { paths }.any(|text| text.contains(&0))
}

const IDS: Kind = Kind::Extended("users-groups-by-id@openssh.com");

fn has_half_id(op: &Op) -> bool {
    op.kind == IDS && op.texts().any(|text| text.len() % 4 != 0)
}
