//! The way of a model request: the reading of its body, of the answer's stream and of rate limits.

pub mod events;
pub mod limits;
pub mod scan;
