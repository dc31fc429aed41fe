"""Grading: learners' functions run in processes of their own, which hold no answers; the grader compares.

    submissions.py  finds what each learner handed in
    process.py      the grader's side of a submission's process: sends inputs, receives results
    runner.py       that process: imports PyTorch once and forks for each exercise, so that a crash ends only this one
    limits.py       what a fork may use; watch.py and source_check.py: what it may not do
    wire.py         results as bytes: JSON and safetensors, never pickle
    grades.py       results to grades, with the words of the checker
    results.py      grades.csv, junit.xml, Gradescope's results.json, a table
    pack.py         what an instructor hands out; answers.py: the instructor's own answers

This is no sandbox: see "What it does not prevent" in ../README.md.
"""
