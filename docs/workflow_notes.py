"""What stands in the note beside each workflow."""

POOLS = """## Build face pools

Put clips of one person into input/my_clips, and an InsightFace pack into
models/insightface/models/antelopev2.

**Curate Clips** cuts them into shots and keeps those that show one person well; why a shot is dropped is on
the page output/ipro/curated/my_clips/index.html. largest_face 0 allows any size: the paper's limit is 100.

A pool is all faces of a clip. Look at **self_similarity**: 0.8 and more is one person, 0.2 to 0.35 are
several people mixed. The second clip is followed by the first one's person; both pools are merged and
kept in output/ipro/pools."""
WAN_TEXT = """## Tune Wan 2.2 TI2V-5B

Put clips into input/my_clips, clip.txt with its prompt beside clip.mp4, and a face pack into
models/insightface/models/antelopev2.

Each of the networks is opened in its turn: prompts, first frames, faces, then tuning. What is made of clips
once is kept in output/ipro/cache. Cancel whenever you like: queueing again goes on.

Save LoRA writes to models/loras; press R to see it in the host's loaders."""
STOCK = """## Tune Wan 2.2 I2V-A14B in its own template

The official template with **Train** where its KSamplers were: any loader of MODEL, VAE and CLIP will do,
and whatever lies on the MODEL stays on it.

Put a picture of the person into input/person.png, a clip of the same person into input/my_clips, and a face
pack into models/insightface/models/antelopev2. The clip's faces are the pool that the videos are compared
with. To tune on many clips, take *Build Dataset* in the place of *Dataset from Image*: prompts are then
clip.txt beside clip.mp4.

What the high-noise expert makes of the picture is kept in output/ipro/cache. Cancel whenever you like:
queueing again goes on.

Save LoRA writes to models/loras; press R to see it in the host's loaders. It belongs on the low-noise
model."""
TINY_WORLD = """## The tiny world

The whole pipeline on a CPU, in minutes, with what the pack brings: people of an embedded world, its
face networks, its video model. Queue it: **Train** tunes a LoRA on 200 scenes and shows reward, KL and
videos.

Cancel whenever you like: queueing again goes on. Then people who were never tuned on are judged, base
against tuned from the same noise, and a report is written to output/ipro."""
GENERATING = """## Generate with the tuned LoRA

ComfyUI's own graph for Wan 2.2 I2V-A14B with Lightning, and the LoRA that IPRO tuned, on the
**low-noise** model. Its first frame is input/person.png.

**Apply LoRA (exact, step range)** lays it beside the layers: right for fp8, int8 and GGUF, where adding
it into the weights rounds most of it away. With bf16 or fp16 models the stock loader before it does as
well: wake that and bypass the other (Ctrl+B).

The experts change at step 3 of 8, noise level 0.9: where the low-noise one begins by its training, and
where IPRO tunes it. Half of the steps each would give the other a step that it never learnt."""
JUDGING = """## Base against tuned

Clips of **other** people in input/other_people, each with a face in its first frame: who is judged on
what was tuned on measures memory. 32 clips with 3 seeds are a fair test.

Choose your run and, in the loader, a second face pack as the judge."""
PERSON = """## One person from a picture (PersonalVideo)

Wan 2.1 text-to-video learns a person from pictures alone: put one into input/person.png (several: *Batch
Images* before the dataset), a face pack into models/insightface/models/antelopev2, and HPSv2 as
.safetensors into models/clip_vision. HPSv2 is published as a pickle: the loader's sentence says how to
convert it. Without it choose CLIP with both towers, or semantic_weight 0.

**Prompt List** gives fifty prompts, or asks your own language model for others. The likeness to the
pictures is rewarded, the frames' order in fitting the prompt is kept (SCR), and the adapter is on in the
last quarter of the steps alone; the saved LoRA says so, and *Apply LoRA (exact, step range)* reads it.

8 steps without guidance want a few-step LoRA of this model at **lightning**. These settings are the paper's
where it names them; nothing of this has run with the real networks yet."""
BASELINES = """## The paper's baselines, side by side

IPRO and what Tables 3 and 4 of the paper hold against it, on the tiny world, with what the pack brings: a
column for each method, from its objective down to what it gained on people who were never tuned on.

- **IPRO**: the reward's gradient through the last steps, held by a KL anchor.
- **SFT**: the real clips themselves, with a face loss on what one step predicts.
- **CLIP**: IPRO whose reward compares faces by CLIP's image encoder in the recogniser's place.
- **DPO**: of four videos of a clip the best is preferred to the worst.
- **GRPO**: eight videos of a clip compete; it wants no gradient of the reward.

All have the same scenes, and as many passes of the network, a backward pass counting two and a look at a
video nine: that is why *updates* and *batch_size* differ. *gain* in Compare Runs is FaceSim, tuned less base.

So short a run shows how each is used, not which is best: `make paper-tables` runs them longer, with three
seeds and intervals, on scenes with large turns."""
