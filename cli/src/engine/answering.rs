//! Answers of a model to questions: written, or chosen.

use chandler_data::{Question, Tokenizer};
use chandler_evaluator::{
    ChoiceLogprob, Ended, EvalError, EvalScope, GenerateOptions, Generation, Normalization, Scorer,
    pick,
};

use super::EngineError;
use super::eval_set::EvalSet;
use crate::store::EvalSample;

/// Has a set's questions answered, each as often as the set says.
pub(super) fn answer(
    scope: &mut EvalScope,
    set: &EvalSet,
    options: &GenerateOptions,
    tokenizer: &Tokenizer,
) -> Result<Vec<EvalSample>, EngineError> {
    let attempts = set.attempts.max(1);
    let prompts: Vec<Vec<u32>> = set
        .questions
        .iter()
        .flat_map(|question| std::iter::repeat_n(question.prompt_ids.clone(), attempts))
        .collect();
    let mut watcher = stop_watcher(tokenizer, &set.stop_strings);
    let answers = scope.generate(&prompts, options, &mut watcher)?;
    let sample = |(index, generation): (usize, &Generation)| -> Result<_, EngineError> {
        let (position, attempt) = (index / attempts, index % attempts);
        let text = text_of(tokenizer, generation, &set.stop_strings)?;
        let sample = sample(set, position, &set.questions[position], text, tokenizer)?;
        Ok(EvalSample {
            attempt: attempt as u64,
            new_tokens: generation.new_ids.len() as u64,
            seconds: scope.seconds().get(index).copied(),
            ..sample
        })
    };
    answers.iter().enumerate().map(sample).collect()
}

/// Who looks on while choices are made.
pub(super) struct Watched<'a> {
    /// Whether somebody wants an end.
    pub(super) stop: &'a dyn Fn() -> bool,
    /// Is told how many questions are done.
    pub(super) tell: &'a dyn Fn(usize),
}

/// Has the most probable choice of each question picked.
pub(super) fn choose(
    scope: &mut EvalScope,
    set: &EvalSet,
    normalization: Normalization,
    tokenizer: &Tokenizer,
    watched: &Watched,
) -> Result<Vec<EvalSample>, EngineError> {
    let mut samples = vec![];
    for (position, question) in set.questions.iter().enumerate() {
        (watched.tell)(position);
        let Some(choices) = &question.choices else { continue };
        let mut found = vec![];
        for choice in &choices.each {
            if (watched.stop)() {
                return Err(EvalError::Stopped.into());
            }
            let likely = scope.log_likelihood(&choice.row())?;
            let bytes = choice.text.len();
            found.push(ChoiceLogprob { logprob: likely.sum, tokens: likely.tokens, bytes });
        }
        let picked = pick(&found, normalization);
        let text = picked.map_or_else(String::new, |at| choices.each[at].text.clone());
        let right = picked == Some(choices.right);
        let sample = sample(set, position, question, text, tokenizer)?;
        samples.push(EvalSample { score: Some(f64::from(u8::from(right))), ..sample });
    }
    Ok(samples)
}

fn sample(
    set: &EvalSet,
    position: usize,
    question: &Question,
    text: String,
    tokenizer: &Tokenizer,
) -> Result<EvalSample, EngineError> {
    let reference = question.reference.clone();
    let expected = set.reference(position as u64);
    // A reference that no text can equal leaves it open.
    let matches = Scorer::default().score(&text, expected.as_ref()).ok().flatten();
    let exact_match = matches.map(|score| score >= 1.0);
    Ok(EvalSample {
        set: set.name.clone(),
        position: position as u64,
        prompt: tokenizer.decode(&question.prompt_ids, true)?,
        reference,
        text,
        exact_match,
        prompt_tokens: Some(question.prompt_ids.len() as u64),
        ..EvalSample::default()
    })
}

/// Ends an answer in whose last tokens a stop string stands.
pub(crate) fn stop_watcher<'a>(
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
) -> impl FnMut(usize, &[u32]) -> Option<Ended> + 'a {
    let longest = stops.iter().map(String::len).max().unwrap_or(0);
    move |_, ids| {
        if longest == 0 {
            return None;
        }
        let tail = &ids[ids.len().saturating_sub(longest + 8)..];
        let text = tokenizer.decode(tail, false).ok()?;
        stops.iter().any(|stop| text.contains(stop.as_str())).then_some(Ended::StopString)
    }
}

/// The text of an answer, up to the first stop string.
pub(crate) fn text_of(
    tokenizer: &Tokenizer,
    generation: &Generation,
    stops: &[String],
) -> Result<String, EngineError> {
    let mut text = tokenizer.decode(&generation.new_ids, true)?;
    if let Some(at) = stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        text.truncate(at);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use chandler_data::TextPipeline;

    use super::*;
    use crate::config::Config;

    #[test]
    fn an_answer_matches_as_its_score_says() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/goldens/models/qwen3");
        let pipeline = TextPipeline::open(folder.as_ref()).unwrap();
        let lines = [
            r#"{"prompt": "a", "reference": ["x", "y"]}"#,
            r#"{"prompt": "a", "completion": "It is x.", "reference": "x"}"#,
            r#"{"prompt": "a", "completion": " x"}"#,
            r#"{"prompt": "a", "reference": {"x": 1}}"#,
            r#"{"text": "a"}"#,
        ];
        let questions = lines.map(|line| pipeline.question(line, None, None).unwrap());
        let config = Config::default();
        let set = EvalSet::own(&config, questions.to_vec(), false, None, vec![], "").unwrap();
        let matches = |position: usize, text: &str| {
            let (question, text) = (&set.questions[position], text.to_owned());
            sample(&set, position, question, text, pipeline.tokenizer()).unwrap().exact_match
        };
        for position in 0..3 {
            assert_eq!(matches(position, "<think>Hm.</think>\nx"), Some(true), "{position}");
            assert_eq!(matches(position, "It is x."), Some(false), "{position}");
        }
        assert_eq!((matches(3, "{\"x\":1}"), matches(4, "x")), (None, None));
    }
}
