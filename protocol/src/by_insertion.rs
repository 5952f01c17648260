//! Maps and sets that are made by inserting.

/// What `collect` would make of `items`, without its sorting, of which every type has a copy: 5 KB
/// in an agent that is to be small.
#[must_use]
pub fn by_insertion<C, T>(items: impl IntoIterator<Item = T>) -> C
where
    C: Default + Extend<T>,
{
    let mut made = C::default();
    made.extend(items);
    made
}
