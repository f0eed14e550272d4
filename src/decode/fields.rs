//! What both paths hand to the checks: a record's mapped fields.

/// The value of a field, as far as a reading may need it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    /// There is no such field.
    Absent,
    /// It is null.
    Null,
    /// A string.
    Text(&'a str),
    /// A number without fraction or exponent; it stands for its text.
    Whole {
        /// As written; empty in a field that is no name.
        text: &'a str,
        /// If it fits.
        int: Option<i64>,
        /// The nearest f64.
        value: f64,
    },
    /// Any other number; in a field that is no name also minus zero, and whole numbers that fit neither i64 nor u64.
    Fraction(f64),
    /// True, false, an array or an object.
    Other,
}

/// A record's mapped fields, by their numbers in the mapping.
pub(super) trait Fields<'a> {
    /// Whether texts are known to be without control characters.
    const WITHOUT_CONTROLS: bool;
    /// The field of this number.
    fn get(&self, field: usize) -> Scalar<'a>;
}
