//! All sequences of one request: prompts times choices, run side by side.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use oarlock_telemetry::KeyUsage;
use oarlock_types::{
    GroupId, Request, RequestId, SamplingParams, StopCriteria, TokenId, TokenScore,
};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::app::App;
use crate::caller::Caller;
use crate::error::ApiError;
use crate::generate::{Delta, Finish, Generation, Sequence, TokenUsage};
use crate::models::Served;
use crate::sampling::random_bits;
use crate::settings::Settings;

/// One prompt to answer.
pub(crate) struct Job {
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) max_tokens: u32,
    /// Characters of the answer before the first generated one (an echoed prompt).
    pub(crate) num_echo_chars: usize,
}

/// How the jobs of a request are run.
pub(crate) struct Fanout {
    /// Answers to each prompt that are generated.
    pub(crate) choices: u32,
    /// Of these, answers that are given.
    pub(crate) n: u32,
    /// Most likely tokens to report at each place of the prompts.
    pub(crate) prompt_logprobs: Option<u8>,
    /// Whether the first choice of a prompt alone reports them: enough where all answers are given
    /// together.
    pub(crate) first_scores_only: bool,
}

impl Fanout {
    /// Refuses what could never be taken, and answers that are much longer than their request.
    fn check(&self, app: &App, served: &Served, jobs: &[Job]) -> Result<(), ApiError> {
        let sequences = jobs.len() as u64 * u64::from(self.choices);
        let limits = served.limits;
        let room = u64::from(limits.max_seqs) + u64::from(limits.max_queued);
        if sequences > room {
            let field = if jobs.len() > 1 { "prompt" } else { "n" };
            let message =
                format!("{sequences} sequences; the server runs and queues {room} at most");
            return Err(ApiError::invalid(field, message));
        }
        let Some(top) = self.prompt_logprobs else { return Ok(()) };
        let tokens: u64 = jobs.iter().map(|job| job.prompt.len() as u64).sum();
        // All that are generated have them in memory, also those that are not given.
        let entries = tokens * (u64::from(top) + 1) * u64::from(self.choices);
        let limit = app.config.request.max_prompt_logprob_entries;
        if entries > u64::from(limit) {
            let is_echo = jobs.iter().any(|job| job.num_echo_chars > 0);
            let field = if is_echo { "logprobs" } else { "prompt_logprobs" };
            let message = format!("{entries} logprobs of prompts; an answer has {limit} at most");
            return Err(ApiError::invalid(field, message));
        }
        Ok(())
    }
}

/// Running sequences. Dropping it cancels them.
pub(crate) struct Choices {
    running: FuturesUnordered<BoxFuture<'static, Turn>>,
    /// Of each sequence, what it used so far.
    usage: Vec<TokenUsage>,
    prompts: Vec<Arc<[TokenId]>>,
    per_prompt: u32,
    admitted: Admitted,
    key_usage: Option<KeyUsage>,
}

/// A request that the gateway has let in.
pub(crate) struct Admitted {
    /// Who asked, and pays.
    pub(crate) caller: Caller,
    /// Counts it among those that a drain waits for.
    #[expect(dead_code, reason = "held until the answer is complete")]
    pub(crate) in_flight: TaskTrackerToken,
    /// When it came.
    pub(crate) arrived: Instant,
}

/// A sequence and what it gave.
type Turn = (Generation, Result<Option<Delta>, ApiError>);

/// The whole answer of one sequence.
pub(crate) struct Answer {
    pub(crate) delta: Delta,
    pub(crate) generation: Generation,
}

impl Choices {
    /// Hands all sequences to the engine and waits until the first one runs, so that a refusal is
    /// still an error status. If one of them is refused, so is the request.
    pub(crate) async fn start(
        app: &App,
        served: &Served,
        settings: Arc<Settings>,
        jobs: Vec<Job>,
        fanout: &Fanout,
        admitted: Admitted,
    ) -> Result<Self, ApiError> {
        fanout.check(app, served, &jobs)?;
        let prompts = jobs.iter().map(|job| Arc::clone(&job.prompt)).collect();
        let mut generations = Vec::with_capacity(jobs.len() * fanout.choices as usize);
        for job in jobs {
            let group = if fanout.choices > 1 { Some(GroupId(random_bits()?)) } else { None };
            for choice in 0..fanout.choices {
                let scored = choice == 0 || !fanout.first_scores_only;
                let prompt_logprobs = fanout.prompt_logprobs.filter(|_| scored);
                let request =
                    Request { prompt_logprobs, group, ..request(&settings, &job, choice) };
                let mut recorder = app.metrics.request(&served.name, admitted.arrived);
                let events = match served.engine.generate(request).await {
                    Ok(events) => events,
                    Err(error) => {
                        // It is among the engine's rejections, and with it the whole request.
                        recorder.refused();
                        generations.iter_mut().for_each(Generation::refused);
                        return Err(error.into());
                    }
                };
                let index = generations.len() as u32;
                let sequence = Sequence {
                    index,
                    prompt: Arc::clone(&job.prompt),
                    has_scores: prompt_logprobs.is_some(),
                    num_echo_chars: job.num_echo_chars,
                    max_tokens: job.max_tokens,
                    n: (index == 0).then_some(fanout.n),
                };
                let settings = Arc::clone(&settings);
                generations.push(Generation::new(sequence, events, settings, recorder));
            }
        }
        if let Some(first) = generations.first_mut() {
            first.begin().await?;
        }
        let usage = generations.iter().map(Generation::usage).collect();
        let running = generations.into_iter().map(turn).collect();
        let key_usage = admitted.caller.key_id().map(|key| app.metrics.key_usage(key));
        let per_prompt = fanout.choices;
        Ok(Self { running, usage, prompts, per_prompt, admitted, key_usage })
    }

    /// The next piece of any sequence, to be handed to `with`; `None` once all have ended. Dropping
    /// the future loses nothing.
    pub(crate) async fn next<T>(
        &mut self,
        with: impl FnOnce(Delta, &Generation, TokenUsage) -> T,
    ) -> Result<Option<T>, ApiError> {
        let Some((generation, result)) = self.advance().await? else { return Ok(None) };
        let is_last = result.finish.is_some();
        let given = with(result, &generation, self.usage());
        if !is_last {
            self.running.push(turn(generation));
        }
        Ok(Some(given))
    }

    async fn advance(&mut self) -> Result<Option<(Generation, Delta)>, ApiError> {
        while let Some((generation, result)) = self.running.next().await {
            self.usage[generation.index as usize] = generation.usage();
            if let Some(delta) = result? {
                return Ok(Some((generation, delta)));
            }
        }
        Ok(None)
    }

    /// The whole answers, by prompt, then by choice.
    pub(crate) async fn collect(&mut self) -> Result<Vec<Answer>, ApiError> {
        let mut wholes: Vec<Delta> = self.usage.iter().map(|_| Delta::default()).collect();
        let mut answers = Vec::with_capacity(wholes.len());
        while let Some((generation, delta)) = self.advance().await? {
            let whole = &mut wholes[generation.index as usize];
            whole.text.push_str(&delta.text);
            whole.tokens.extend(delta.tokens);
            whole.finish = delta.finish;
            if whole.finish.is_some() {
                let delta = std::mem::take(whole);
                answers.push(Answer { delta, generation });
            } else {
                self.running.push(turn(generation));
            }
        }
        answers.sort_unstable_by_key(|answer| answer.generation.index);
        self.share_scores(&mut answers);
        Ok(answers)
    }

    /// Where only the first choice of a prompt scored it, the others have the same scores.
    fn share_scores(&self, answers: &mut [Answer]) {
        for siblings in answers.chunks_mut(self.per_prompt as usize) {
            let Some((first, others)) = siblings.split_first_mut() else { continue };
            for other in others.iter_mut().filter(|o| o.generation.prompt_scores.is_empty()) {
                other.generation.prompt_scores.clone_from(&first.generation.prompt_scores);
            }
        }
    }

    /// Token counts so far: each prompt once, all tokens generated.
    pub(crate) fn usage(&self) -> TokenUsage {
        let mut total = TokenUsage::default();
        for (index, usage) in self.usage.iter().enumerate() {
            total.completion += usage.completion;
            // Siblings read the first one's blocks; that is nothing that the client saved.
            if index.is_multiple_of(self.per_prompt as usize) {
                total.prompt += usage.prompt;
                total.cached += usage.cached;
            }
        }
        total
    }

    /// The prompts, in the request's order.
    pub(crate) fn prompts(&self) -> &[Arc<[TokenId]>] {
        &self.prompts
    }

    /// Number of sequences.
    pub(crate) fn len(&self) -> u32 {
        self.usage.len() as u32
    }

    /// Answers to each prompt.
    pub(crate) fn per_prompt(&self) -> u32 {
        self.per_prompt
    }
}

impl Drop for Choices {
    /// Whatever the answer came to, also for a client that left, is its key's to account for.
    fn drop(&mut self) {
        let used = self.usage();
        self.admitted.caller.charge(used.prompt.saturating_add(used.completion));
        if let Some(key_usage) = &self.key_usage {
            key_usage.add(used.prompt, used.completion);
        }
    }
}

fn turn(mut generation: Generation) -> BoxFuture<'static, Turn> {
    async move {
        let result = generation.next().await;
        (generation, result)
    }
    .boxed()
}

fn request(settings: &Settings, job: &Job, choice: u32) -> Request {
    Request {
        // The engine chooses it.
        id: RequestId(0),
        num_prompt: job.prompt.len() as u32,
        tokens: job.prompt.to_vec(),
        sampling: SamplingParams { choice, ..settings.sampling.clone() },
        stop: StopCriteria { max_tokens: job.max_tokens, stop_token_ids: settings.ends.clone() },
        prompt_logprobs: None,
        priority: settings.priority,
        tenant: settings.tenant,
        salt: settings.salt,
        deadline: settings.deadline,
        group: None,
    }
}

/// Of each prompt's answers, the `n` with the highest mean logprob, best first; equal ones in order of
/// their choice.
pub(crate) fn best(answers: Vec<Answer>, per_prompt: u32, n: u32) -> Vec<Answer> {
    let mut kept = Vec::with_capacity(answers.len());
    let mut answers = answers.into_iter().peekable();
    while answers.peek().is_some() {
        let mut siblings: Vec<Answer> = answers.by_ref().take(per_prompt as usize).collect();
        // Stable, so that the order of choices decides among equals.
        siblings.sort_by(|a, b| mean_logprob(&b.delta).total_cmp(&mean_logprob(&a.delta)));
        siblings.truncate(n as usize);
        kept.extend(siblings);
    }
    kept
}

/// Mean of the generated tokens' logprobs; an answer without tokens is as good as a certain one.
fn mean_logprob(answer: &Delta) -> f64 {
    let scores = answer.tokens.iter().filter_map(|token| token.score.as_ref());
    let (count, sum) =
        scores.fold((0_u32, 0.0), |(n, sum), score| (n + 1, sum + f64::from(score.logprob)));
    sum / f64::from(count.max(1))
}

impl Answer {
    /// About how many bytes of work it is to write it.
    pub(crate) fn num_bytes(&self) -> usize {
        const PER_TOKEN: usize = 16;
        const PER_LOGPROB: usize = 64;
        let scored =
            |score: Option<&TokenScore>| score.map_or(0, |s| (1 + s.top.len()) * PER_LOGPROB);
        let tokens = self.delta.tokens.iter().map(|t| PER_TOKEN + scored(t.score.as_ref()));
        let prompt = self.generation.prompt_scores.iter().map(|score| scored(score.as_ref()));
        self.delta.text.len() + tokens.sum::<usize>() + prompt.sum::<usize>()
    }

    /// How it ended.
    pub(crate) fn take_finish(&mut self) -> Finish {
        self.delta.finish.take().unwrap_or(Finish::Length)
    }
}
