//! replay
/// placeholder
pub enum Replay {}
