//! Search, shrinking and replay together: against brute force, and on subjects made up for one question.

mod brute_force;
mod merging;
mod naive;
mod program;
mod script;
mod searching;
mod shrinking;
