// SPDX-License-Identifier: GPL-2.0-only
//! The one error of this side floor: a line that names the place, what is wrong there, and the way out.

use std::fmt;

/// What a host cannot be read or planned for. Prints as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// File (with line, where known), or the argument that was given.
    pub place: String,
    /// Field of the file, or empty.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl HostError {
    /// An error about `place` as a whole.
    pub fn new(place: impl fmt::Display, problem: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self::field(place, "", problem, remedy)
    }

    /// An error about one field of `place`.
    pub fn field(
        place: impl fmt::Display,
        field: impl fmt::Display,
        problem: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self {
            place: place.to_string(),
            field: field.to_string(),
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        }
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        write!(f, "{}: ", one_line(&self.place))?;
        if !self.field.is_empty() {
            write!(f, "field `{}`: ", one_line(&self.field))?;
        }
        write!(f, "{}; {}", one_line(&self.problem), one_line(&self.remedy))
    }
}

impl std::error::Error for HostError {}
