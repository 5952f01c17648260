//! The query of a URL.

/// The first value of a parameter, decoded. Invalid escapes stay as they are.
pub(crate) fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let (_, value) = pairs.find(|(key, _)| key == name)?;
    Some(value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_by_its_whole_name() {
        let find = |query| parameter(query, "secret");
        assert_eq!(find("a=1&secret=x&b").as_deref(), Some("x"));
        assert_eq!(find("notsecret=x"), None);
        assert_eq!(find("secret").as_deref(), Some(""));
        assert_eq!(find("secret=1&secret=2").as_deref(), Some("1"));
    }

    #[test]
    fn a_value_is_decoded() {
        let find = |query| parameter(query, "type").unwrap();
        assert_eq!(find("type=a%2Cb%2cc"), "a,b,c");
        assert_eq!(find("t%79pe=a+b"), "a b");
        assert_eq!(find("type=%zz%"), "%zz%");
    }
}
