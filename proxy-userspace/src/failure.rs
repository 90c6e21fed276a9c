//! How a command ends: exit code and message.

use std::fmt;

use crate::proxy::ProxyError;

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

/// The class of an error: what a [`Failure`] in its chain says, or what kind of [`ProxyError`] it is.
#[must_use]
pub fn class_of(error: &anyhow::Error) -> Class {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.class;
    }
    match error.downcast_ref::<ProxyError>() {
        Some(error) if error.is_missing_feature() => Class::Missing,
        _ => Class::Failed,
    }
}
