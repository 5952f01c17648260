//! Collects maps and sets by inserting.

/// As `collect`, but inserts the items one by one. `collect` sorts them first, which takes 5 KB of code for
/// each type.
#[must_use]
pub(crate) fn by_insertion<C, T>(items: impl IntoIterator<Item = T>) -> C
where
    C: Default + Extend<T>,
{
    let mut made = C::default();
    made.extend(items);
    made
}
