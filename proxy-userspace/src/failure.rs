//! How a command ends: exit code and message.

use std::fmt;

/// What went wrong, as the caller's shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something failed.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// A privilege or a kernel feature is missing.
    Missing,
}

impl Class {
    /// The exit code.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Missing => 3,
        }
    }
}

/// An error with its class, to be attached as context.
#[derive(Debug)]
pub struct Failure {
    class: Class,
    message: String,
}

impl Failure {
    /// A wrong command line or configuration.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            class: Class::Usage,
            message: message.into(),
        }
    }

    /// Which.
    #[must_use]
    pub const fn class(&self) -> Class {
        self.class
    }

    /// A missing privilege or kernel feature.
    pub fn missing(message: impl Into<String>) -> Self {
        Self {
            class: Class::Missing,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
