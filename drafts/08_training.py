# %% [markdown]
# training

> From pairs, features and proposals to a trained matcher and its predictions: the loop, its checkpoints, and the baselines that say what training was worth.

# %% [markdown]
O-MaMa's training is plain (SPEC 10): AdamW, a cosine from 8e-6 down to 1e-6, ten epochs. What makes it slow or fast, and right or wrong, is what a batch is made of. Three thoughts are behind this notebook.

1. **Pairs come in bunches.** The eight objects of a frame are eight pairs, with the same two feature maps and the same proposals. Asked one after the other, they cost eight times the tokens; asked together, the maps are read, projected and normalised once, and each proposal looks at the source view once.
2. **A run can be killed.** What an epoch draws depends only on (seed, epoch, pair), and the learning rate only on the step, so a run that goes on after a `SIGKILL` ends with the same weights, bit for bit, as one that was left alone.
3. **A number needs neighbours.** Chance, the cosine of untrained descriptors, and the oracle that always picks the best proposal are predicted through the same code, so that they stand in the same table.

# %%
#| default_exp training

# %%
#| hide
from nbdev.showdoc import *

# %%
#| export
import json, math, platform
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np, pandas as pd
import torch, torch.nn.functional as F
from fastcore.basics import patch
from fastcore.meta import delegates
from torch import Tensor, nn
from egoexo_corr import __version__
from egoexo_corr.backbones import Backbone, FeatureStore, describe_camera, differences, used_frames
from egoexo_corr.core import ArgumentError, DataError, Direction, EgoExoError, FileError, atomic_path, inside, read_json, view_of, write_json
from egoexo_corr.dataset import GRIDS, Annotations, frame_path, frames_of, ground_truth, load_frame, pairs_path, read_pairs, resize_image, sample_by_count
from egoexo_corr.masks import adjacency, box_iou, rle_boxes, rle_encode, rle_iou, rle_resize
from egoexo_corr.metrics import evaluate
from egoexo_corr.omama import WIDTH, Match, OMaMa, describe, matching_loss, sample_candidates

# %%
import copy, inspect, shutil, signal, subprocess, sys, tempfile, time
import matplotlib.pyplot as plt
from fastcore.test import *
from egoexo_corr.backbones import extract, load
from egoexo_corr.dataset import prepare, read_splits, write_pairs
from egoexo_corr.masks import draw_masks, rle_decode
from egoexo_corr.omama import project_descriptors
torch.set_num_threads(1)
scratch = Path(tempfile.mkdtemp())

# %% [markdown]
## A root to practise on

Four takes of EgoExo-Mini (two to train, one to validate, one to test), with maps of the embedded backbone on a quarter of the usual grid. Real proposals are `05_proposals`' business; here they are made from the annotation, so that all is known about them: each annotated object as it is, slightly too small or too large, and its upper half as a wrong answer that lies close.

# %%
MINI = Path('../data/mini')
split = read_json(MINI/'split.json')
uids = split['train'][:2] + split['val'][:1] + split['test'][:1]
root = scratch/'root'
prepare(MINI, root, uids=uids); write_pairs(root, splits=['train', 'val', 'test'])
backbone = load('efficientnet-lite0', scale=.25)
extract(root, backbone)
backbone.name, backbone.grid('exo'), backbone.grid('ego')

# %%
annotations = Annotations(root)

@lru_cache(None)
def stand_in(take, camera, frame):
    "Proposals made from the annotation: each object a little too small or too large, and its upper half"
    import cv2
    rles, rng = [], np.random.default_rng(frame)
    for name, cameras in annotations[take].masks.items():
        if (rle := cameras.get(camera, {}).get(str(frame))) is None: continue
        mask = rle_decode(rle_resize(rle, (540, 960) if view_of(camera)=='exo' else (704, 704))).astype(np.uint8)
        if not mask.any(): continue
        side = max(1, int(mask.sum()**.5*.05))
        shrunk = cv2.erode(mask, np.ones((2*side+1,)*2, np.uint8))
        rles.append(rle_encode(shrunk if rng.random()<.5 and shrunk.any() else cv2.dilate(mask, np.ones((side+1,)*2, np.uint8))))
        rows = np.flatnonzero(mask.any(1)); mask[rows[len(rows)//2]:] = 0
        if mask.any() and rng.random()<.5: rles.append(rle_encode(mask))
    return rles

# %% [markdown]
## Where features come from

Either from the store, where `06_backbones` put the maps, and where the descriptors of all masks are kept beside them (SPEC 14.2); or from the frames, at the moment they are needed. To what follows both look the same.

Descriptors want a fine grid, since an exo object is 10 to 80 pixels small, and they are pooled once. The context that cross-attention gathers does not, and it is paid for at every step. So the tokens may be averaged in squares: with `pool=dict(exo=2)` the matcher sees 19×34 exo tokens, and its descriptors still come from 38×68.

# %%
#| export
class _Features:
    "What stored and live features have in common"
    def __init__(self, source, made_with:dict, pool:dict|None):
        self.source, self.dim, self.pool = source, source.dim, {'ego': 1, 'exo': 1} | (pool or {})
        self.image_size, self.made_with = source.image_size, made_with | {'pool': self.pool}
        for view, n in self.pool.items():
            h, w = source.grid(view)
            if h%n or w%n: raise ArgumentError(f'the {view} grid of {h}×{w} tokens cannot be averaged in squares of {n}')

    def grid(self, view:str) -> tuple[int,int]: "Tokens (rows, columns) that a matcher sees"; return tuple(n//self.pool[view] for n in self.source.grid(view))

    def context(self, view:str) -> int:
        "Pixels by which a box grows for its context: 100 at the report's image size, and as much less as the image is smaller"
        return round(100*self.source.grid(view)[0]/GRIDS[view][0])

    def map(self, take:str, camera:str, frame:int) -> Tensor: # float32 [C, h, w]
        "A frame's tokens"
        full = self.full_map(take, camera, frame)
        return full if (n := self.pool[view_of(camera)])==1 else F.avg_pool2d(full, n)

# %%
#| export
class StoredFeatures(_Features):
    "Maps and descriptors from a root's feature store"
    def __init__(self,
        root:str|Path,  # A root
        name:str,       # Of the backbone, as in `Backbone.name`
        pool:dict=None  # View → side of the squares in which tokens are averaged
    ):
        self.store = FeatureStore(root, name)
        super().__init__(self.store, self.store.made_with, pool)

    def lacks(self, take:str, camera:str, frames) -> set[int]:
        "Frames that are not there"
        return set(frames)-set(self.store.frames('maps', take, camera))

    def keep(self, kind:str, take:str, camera:str, frames, masks_of):
        "Pool and keep the descriptors of what `masks_of(take, camera, frame)` gives, {name: RLE}, for those of the frames that have maps; unless they are there"
        masks = {f: masks_of(take, camera, f) for f in sorted(set(frames)-self.lacks(take, camera, frames))}
        describe_camera(self.store, kind, take, camera, masks, partial(describe, context=self.context(view_of(camera))))

    def full_map(self, take:str, camera:str, frame:int) -> Tensor: # float32 [C, h, w]
        "A frame's map"
        return self.store.read('maps', take, camera, frame).permute(2, 0, 1).float()

    def descriptors(self, kind:str, take:str, camera:str, frame:int, masks:dict) -> Tensor: # float32 [N, 2C]
        "Those that were kept of a frame's masks, name → RLE"
        return self.store.read(kind, take, camera, frame).float()

# %%
#| export
class LiveFeatures(_Features):
    "Maps and descriptors that a backbone makes from the frames when they are asked for"
    def __init__(self,
        root:str|Path,     # A root
        backbone:Backbone, # From `backbones.load`
        pool:dict=None,    # View → side of the squares in which tokens are averaged
        remember:int=8     # How many maps to hold
    ):
        super().__init__(backbone, backbone.made_with(), pool)
        self.root, self.backbone, self.full_map = Path(root), backbone, lru_cache(remember)(self.full_map)

    def lacks(self, take:str, camera:str, frames) -> set[int]:
        "Frames that are not there"
        return {f for f in frames if not frame_path(self.root, take, camera, f).is_file()}

    def keep(self, kind:str, take:str, camera:str, frames, masks_of): "Nothing is kept"

    def full_map(self, take:str, camera:str, frame:int) -> Tensor: # float32 [C, h, w]
        "A frame's map"
        image = resize_image(load_frame(self.root, take, camera, frame), self.image_size(view_of(camera)))
        return self.backbone.dense(image[None])[0].cpu()

    def descriptors(self, kind:str, take:str, camera:str, frame:int, masks:dict) -> Tensor: # float32 [N, 2C]
        "Those of a frame's masks, name → RLE"
        size = self.image_size(view_of(camera))
        rles = [rle_resize(r, size) for r in masks.values()]
        return describe(self.full_map(take, camera, frame), rles, rle_boxes(rles), size, self.context(view_of(camera)))

# %%
stored, live = StoredFeatures(root, backbone.name), LiveFeatures(root, backbone)
take = uids[0]; camera, frame = 'cam01', sorted(stored.store.frames('maps', take, 'cam01'))[2]
test_close(stored.map(take, camera, frame), live.map(take, camera, frame), eps=1e-3)
masks = dict(enumerate(stand_in(take, camera, frame)))
stored.keep('trial', take, camera, [frame, 7], lambda *where: masks)
test_close(stored.descriptors('trial', take, camera, frame, masks), live.descriptors('trial', take, camera, frame, masks), eps=1e-3)
test_eq(stored.lacks(take, camera, [frame, 7]), {7}); test_eq(live.lacks(take, camera, [frame, 7]), {7})
test_fail(lambda: StoredFeatures(root, 'dinov2-vitb14'), contains="there are no features of dinov2-vitb14 here; make them with 'egoexo_features'")

# %%
coarse = StoredFeatures(root, backbone.name, pool=dict(ego=2))
test_eq((coarse.grid('ego'), coarse.grid('exo')), ((6, 6), stored.grid('exo')))
fine, ego = stored.map(take, 'aria01_214-1', frame), coarse.map(take, 'aria01_214-1', frame)
test_close(ego[:,2,3], fine[:,4:6,6:8].mean((1, 2)), eps=1e-5)
test_fail(lambda: StoredFeatures(root, backbone.name, pool=dict(exo=3)), contains='cannot be averaged in squares of 3')

# %% [markdown]
## Frame pairs

A **frame pair** is the same moment in two cameras, with all that is asked of it: the descriptors of the objects that are looked for, those of every candidate, and the two maps, once. `dest` holds the proposals and after them the ground truths of what is visible, so that a candidate is a row.

# %%
#| export
class FramePair(NamedTuple):
    "The frames of two cameras, and the objects that are looked for"
    take:str
    source_cam:str
    dest_cam:str
    frame:int
    rows:np.ndarray       # int64 [B], the pairs, by their place in the table
    source:Tensor         # float32 [B, 2C], descriptors of the objects
    truth:np.ndarray      # int64 [B], the row of each one's ground truth in `dest`; −1 if it is not visible
    dest:Tensor           # float32 [P+V, 2C], descriptors of the proposals, then of the visible ground truths
    source_map:Tensor     # float32 [C, h, w]
    dest_map:Tensor       # float32 [C, h, w]
    proposals:list        # P RLEs
    iou:np.ndarray        # float64 [B, P], mask IoU of each ground truth with each proposal
    box_iou:np.ndarray    # float64 [B, P], the same of boxes
    neighbours:np.ndarray # bool [P, P], `masks.adjacency`

    @property
    def visible(self) -> np.ndarray: "bool [B]"; return self.truth>=0

    def only(self,
        places # Which of the B objects
    ) -> 'FramePair':
        "The same frames, asked for fewer objects"
        return self._replace(**{k: getattr(self, k)[places] for k in ('rows', 'source', 'truth', 'iou', 'box_iou')})

# %% [markdown]
`FramePairs` makes them, and it refuses early what would fail late: a split without pairs, frames without features. What costs time and never changes, the overlaps and the neighbours, is remembered for the last thousand frame pairs; the rest is read anew, so memory does not grow with the data.

# %%
#| export
class FramePairs:
    "The pairs of a split, frame pair by frame pair"
    def __init__(self,
        root:str|Path,          # A root
        split:str,              # 'train', 'val' or 'test'
        direction:str,          # 'exo2ego' or 'ego2exo'
        features,               # `StoredFeatures` or `LiveFeatures`
        proposals,              # A `ProposalStore`, or a function of take, camera and frame that gives RLEs of one size
        pairs:pd.DataFrame=None,# Other pairs than those of the split's pair file
        order:int=2             # Of the adjacency
    ):
        self.root, self.direction, self.features, self.order = Path(root), Direction(direction), features, order
        self.propose = proposals if callable(proposals) else lambda *where: proposals.read(*where).rles
        self.path = pairs_path(root, split, direction)
        self.pairs = read_pairs(self.path, direction) if pairs is None else pairs.reset_index(drop=True)
        if not len(self.pairs): raise DataError(f'the split {split} has no pairs in the direction {direction}', file=self.path)
        groups = self.pairs.groupby(['take', 'source_cam', 'dest_cam', 'frame'], sort=False).indices
        self.keys, self.rows = list(groups), list(groups.values())
        self.annotations, self.overlaps = Annotations(root), lru_cache(1024)(self.overlaps)
        self._keep_descriptors()

    def __len__(self): return len(self.keys)

    def objects(self, take:str, camera:str, frame:int) -> dict: # name → RLE
        "The ground truth of a frame"
        masks = {o: self.annotations.rle(take, o, camera, frame) for o in self.annotations[take].masks}
        return {o: rle for o,rle in masks.items() if rle is not None}

    def names(self, i:int) -> list[str]: "The objects that frame pair i asks for"; return self.pairs['object'].iloc[self.rows[i]].tolist()

# %%
#| export
@patch
def _keep_descriptors(self:FramePairs):
    "Have the descriptors of all masks of the split's frames; `DataError` for a frame without features"
    from tqdm import tqdm
    todo = [(side, *key, rows.frame.tolist()) for side in ('source', 'dest') for key, rows in frames_of(self.pairs, side).groupby(['take', 'camera'])]
    for side, take, camera, frames in todo:
        if lost := self.features.lacks(take, camera, frames):
            raise DataError(f"a pair's {dict(source='source', dest='destination')[side]} frame has no features; if the frame is there, run 'egoexo_features' again",
                            take=take, camera=camera, frame=min(lost))
    used, sought = used_frames(self.root), used_frames(self.root, self.direction)
    for side, take, camera, frames in tqdm(todo, 'descriptors', unit='camera', disable=None, leave=False):
        self.features.keep('truth', take, camera, used.get((take, camera), frames), self.objects)
        if side=='dest': self.features.keep('proposals', take, camera, sought.get((take, camera), frames), self._named_proposals)

@patch
def _named_proposals(self:FramePairs, take, camera, frame) -> dict: return dict(enumerate(self.propose(take, camera, frame)))

# %%
#| export
@patch
def overlaps(self:FramePairs,
    i:int # Which frame pair
) -> tuple: # [B, P] mask IoU, [B, P] box IoU, [P, P] neighbours
    "How each object's ground truth overlaps with the proposals, and which proposals are neighbours"
    take, _, camera, frame = self.keys[i]
    proposals, seen, names = self.propose(take, camera, frame), self.objects(take, camera, frame), self.names(i)
    iou, boxes = np.zeros((2, len(names), len(proposals)))
    there = [b for b,o in enumerate(names) if o in seen]
    if proposals and there:
        truths = [rle_resize(seen[names[b]], proposals[0]['size']) for b in there]
        iou[there], boxes[there] = rle_iou(truths, proposals), box_iou(rle_boxes(truths), rle_boxes(proposals))
    return iou, boxes, adjacency(proposals, self.order)

@patch
def __getitem__(self:FramePairs, i:int) -> FramePair:
    "Frame pair i"
    take, source, dest, frame = self.keys[i]
    names, proposals = self.names(i), self.propose(take, dest, frame)
    here, seen = self.objects(take, source, frame), self.objects(take, dest, frame)
    if lost := set(names)-set(here): raise DataError('a pair has no mask in the source view', take=take, object=min(lost), camera=source, frame=frame)
    there = [o for o in seen if o in names]
    truth = np.array([len(proposals)+there.index(o) if o in seen else -1 for o in names])
    objects = self.features.descriptors('truth', take, source, frame, here)[[list(here).index(o) for o in names]]
    candidates = torch.cat([self.features.descriptors('proposals', take, dest, frame, self._named_proposals(take, dest, frame)),
                            self.features.descriptors('truth', take, dest, frame, seen)[[list(seen).index(o) for o in there]]])
    maps = self.features.map(take, source, frame), self.features.map(take, dest, frame)
    return FramePair(take, source, dest, frame, self.rows[i], objects, truth, candidates, *maps, proposals, *self.overlaps(i))

# %%
val = FramePairs(root, 'val', 'exo2ego', stored, stand_in)
pair = val[5]
print(f'{len(val.pairs)} pairs are {len(val)} frame pairs; this one asks for {len(pair.rows)} objects, {pair.visible.sum()} of them visible, among {len(pair.proposals)} proposals')
{k: list(v.shape) for k,v in pair._asdict().items() if hasattr(v, 'shape')}

# %%
names = val.names(5)
fig, axs = plt.subplots(1, 2, figsize=(9, 3.3), dpi=80, width_ratios=[16, 9], layout='constrained')
for ax, camera, rles in zip(axs, (pair.source_cam, pair.dest_cam), ([val.objects(pair.take, pair.source_cam, pair.frame)[o] for o in names], pair.proposals)):
    image = load_frame(root, pair.take, camera, pair.frame)
    ax.imshow(draw_masks(image, [rle_resize(r, image.shape[:2]) for r in rles])); ax.axis('off')
axs[0].set_title(f'{pair.source_cam}: the {len(names)} objects asked for'); axs[1].set_title(f'{pair.dest_cam}: {len(pair.proposals)} proposals');

# %% [markdown]
Every number in it can be had another way: a descriptor from the mask, an overlap from dense masks.

# %%
b = int(np.flatnonzero(pair.visible)[0])
truth = val.objects(pair.take, pair.dest_cam, pair.frame)[names[b]]
size = stored.image_size('ego')
test_close(pair.dest[pair.truth[b]], describe(pair.dest_map, [truth], rle_boxes([rle_resize(truth, size)]), size, stored.context('ego'))[0], eps=1e-3)
dense = rle_decode(rle_resize(truth, (704, 704)))
test_close(pair.iou[b], [(dense & rle_decode(r)).sum()/(dense | rle_decode(r)).sum() for r in pair.proposals], eps=1e-9)
test_eq(pair.truth>=0, [o in val.objects(pair.take, pair.dest_cam, pair.frame) for o in names])
few = pair.only([b]); test_eq((few.rows, few.iou), (pair.rows[[b]], pair.iou[[b]])); test_eq(len(few.dest), len(pair.dest))
other = FramePairs(root, 'val', 'exo2ego', live, stand_in)[5]
for k in ('source', 'dest', 'source_map', 'dest_map'): test_close(getattr(other, k), getattr(pair, k), eps=2e-3)

# %% [markdown]
What is refused: a split without pairs, a pair whose destination frame is gone, features that were never made.

# %%
gone = shutil.copytree(root, scratch/'gone')
write_json(gone/'dataset_jsons'/'val_exoego_pairs.json', [])
test_fail(lambda: FramePairs(gone, 'val', 'exo2ego', stored, stand_in), contains='the split val has no pairs in the direction exo2ego')
frame_path(gone, pair.take, pair.dest_cam, pair.frame).unlink()
test_fail(lambda: FramePairs(gone, 'val', 'exo2ego', LiveFeatures(gone, backbone), stand_in, pairs=val.pairs),
          contains=f"camera {pair.dest_cam}, frame {pair.frame}: a pair's destination frame has no features")
new = StoredFeatures(gone, backbone.name); shutil.rmtree(new.store.folder/'maps'/pair.take)
test_fail(lambda: FramePairs(gone, 'val', 'exo2ego', new, stand_in, pairs=val.pairs), contains="run 'egoexo_features' again")

# %% [markdown]
## Answers, and what to compare with

An answer to a pair is a proposal and a confidence that the object is there. Whoever gives a **similarity** to each proposal and a **confidence** to each object can answer, so the baselines are functions of a few lines:

- **chance** draws a proposal;
- **cosine** is O-MaMa without O-MaMa: the proposal whose mask descriptor has the highest cosine with the object's. It needs no training (zero-shot), and its confidence is SPEC 9's sigmoid of the similarity;
- the **oracle** looks at the truth. What it misses, no matcher can get from these proposals.

# %%
#| export
def cosine_scores(pair:FramePair) -> tuple[Tensor,Tensor]: # Similarity [B, P], confidence [B]
    "Cosine of mask descriptors, without any training"
    source, dest = (F.normalize(d[:,:d.shape[1]//2], dim=-1) for d in (pair.source, pair.dest[:len(pair.proposals)]))
    return _with_confidence(source@dest.T)

def oracle_scores(pair:FramePair) -> tuple[Tensor,Tensor]:
    "The overlap with the truth, and whether the object is there"
    return torch.from_numpy(pair.iou), torch.from_numpy(pair.visible).float()

def chance_scores(seed:int=0):
    "Scores that are drawn, the same ones for a pair whenever it is asked"
    def scores(pair:FramePair):
        draws = [np.random.default_rng((seed, int(row))).random(len(pair.proposals)+1) for row in pair.rows]
        return torch.from_numpy(np.stack(draws)[:,1:]), torch.from_numpy(np.stack(draws)[:,0])
    return scores

def _with_confidence(similarity:Tensor) -> tuple[Tensor,Tensor]:
    "Similarities and SPEC 9's confidence, the sigmoid of the highest; 0 without proposals"
    if not similarity.shape[1]: return similarity, similarity.new_zeros(len(similarity))
    return similarity, similarity.max(1).values.sigmoid()

# %%
for scores in (cosine_scores, oracle_scores, chance_scores(0)):
    similarity, confidence = scores(pair)
    test_eq((list(similarity.shape), list(confidence.shape)), ([len(names), len(pair.proposals)], [len(names)]))
bare = pair._replace(proposals=[], dest=pair.dest[len(pair.proposals):], iou=pair.iou[:,:0], truth=pair.truth-len(pair.proposals))
test_eq(cosine_scores(bare)[1], torch.zeros(len(names))); test_eq(list(chance_scores(0)(bare)[0].shape), [len(names), 0])
test_eq(chance_scores(0)(pair)[0], chance_scores(0)(pair)[0])

# %% [markdown]
The matcher is one more of them. With the existence head its confidence is a learned probability; without, it is the sigmoid of a cosine.

# %%
#| export
def matcher_scores(
    matcher:OMaMa,
    existence:bool=False # Confidence from the existence head
):
    "Scores by a matcher"
    @torch.no_grad()
    def scores(pair:FramePair) -> tuple[Tensor,Tensor]:
        device = matcher.source_positions.device
        source, dest, source_map, dest_map = (x.to(device) for x in (pair.source, pair.dest[:len(pair.proposals)], pair.source_map, pair.dest_map))
        match = matcher.match(source[:,None], dest[None], source_map[None], dest_map[None])
        similarity, confidence = _with_confidence(match.similarity.float().cpu())
        return similarity, matcher.existence(match).float().softmax(1)[:,1].cpu() if existence and len(dest) else confidence
    return scores

# %%
matcher = OMaMa(stored.grid('exo'), stored.grid('ego'), stored.dim)
similarity, confidence = matcher_scores(matcher)(pair)
test_close(confidence, similarity.max(1).values.sigmoid())
test_close(similarity[[b]], matcher(pair.source[[b]][:,None], pair.dest[None,:len(pair.proposals)], pair.source_map[None], pair.dest_map[None]).detach(), eps=1e-5)
existence = matcher_scores(matcher, existence=True)(pair)[1]; assert ((existence>0)&(existence<1)).all()
test_eq(matcher_scores(matcher, existence=True)(bare)[1], torch.zeros(len(names)))

# %% [markdown]
## The prediction file

Asking all frame pairs gives the JSON of SPEC 11. Where there is no proposal the answer is an empty mask with confidence 0. An object that two exo cameras see has an entry for each.

# %%
#| export
class Answer(NamedTuple):
    "What is answered to a pair"
    row:int          # The pair, by its place in the table
    mask:dict        # RLE
    confidence:float
    loss:float       # Cross-entropy of the best proposal, 0 for an object that is not visible

def _answers(scores, pair:FramePair, size, temperature:float=.07) -> list[Answer]:
    "Answers to all pairs of a frame pair; the target of the loss is the proposal that overlaps most (SPEC 7)"
    similarity, confidence = scores(pair)
    if not pair.proposals: return [Answer(int(r), rle_encode(np.zeros(size, bool)), 0., 0.) for r in pair.rows]
    losses = F.cross_entropy(similarity/temperature, torch.from_numpy(pair.iou.argmax(1)), reduction='none')*torch.from_numpy(pair.visible)
    best = similarity.argmax(1).tolist()
    return [Answer(int(row), pair.proposals[k], c, loss) for row, k, c, loss in zip(pair.rows, best, confidence.tolist(), losses.tolist())]

def _prediction(pairs:FramePairs, answers:list[Answer]) -> dict:
    "Answers as SPEC 11 wants them"
    results = {}
    for answer in sorted(answers):
        take, name, source, dest, frame = pairs.pairs.iloc[answer.row][['take', 'object', 'source_cam', 'dest_cam', 'frame']]
        result = results.setdefault(take, {'masks': {}, 'subsample_idx': set()})
        result['subsample_idx'].add(int(frame))
        result['masks'].setdefault(name, {}).setdefault(f'{source}_{dest}', {})[str(frame)] = {'pred_mask': answer.mask, 'confidence': answer.confidence}
    for result in results.values(): result['subsample_idx'] = sorted(result['subsample_idx'])
    return {pairs.direction.results_key: {'results': results}}

# %%
#| export
def predict(
    scores,          # Function of a `FramePair`: similarity [B, P] and confidence [B]
    pairs:FramePairs # What to ask
) -> dict:           # Prediction JSON of SPEC 11
    "The answers to all pairs"
    from tqdm import tqdm
    size = pairs.features.image_size(pairs.direction.dest)
    answers = [a for i in tqdm(range(len(pairs)), 'predict', unit='frame pair', disable=None) for a in _answers(scores, pairs[i], size)]
    return _prediction(pairs, answers)

# %%
truth = ground_truth(root, 'val', 'exo2ego')
rows = {k: evaluate(truth, predict(s, val)).summary for k,s in dict(chance=chance_scores(0), cosine=cosine_scores, oracle=oracle_scores).items()}
assert rows['chance']['iou'] < rows['cosine']['iou'] < rows['oracle']['iou'] and rows['oracle']['balanced_acc']==1
test_eq({r['n'] for r in rows.values()}, {len(val.pairs)})
pd.DataFrame(rows).T.round(3)

# %% [markdown]
## What a batch is made of

An epoch visits all pairs once. Frame pairs come in a new random order, their pairs in a row, and the row is cut into batches of so many pairs. On Ego-Exo4D, where the report sampled 9,100 pairs, a batch of 12 is then nearly as mixed as a random one, and on the mini it is about two frame pairs. The order is a function of (seed, epoch), and nothing else.

# %%
#| export
def batches(
    pairs:FramePairs, # What to train on
    batch_size:int,   # Pairs in a batch
    seed:int,
    epoch:int         # From 0
) -> list:            # Batches: lists of (frame pair, places of the objects asked for)
    "The batches of an epoch"
    order = np.random.default_rng((seed, epoch)).permutation(len(pairs))
    which = np.concatenate([np.full(len(pairs.rows[i]), i) for i in order])
    place = np.concatenate([np.arange(len(pairs.rows[i])) for i in order])
    cuts = [slice(k, k+batch_size) for k in range(0, len(which), batch_size)]
    return [[(int(i), place[c][which[c]==i]) for i in dict.fromkeys(which[c])] for c in cuts]

# %%
train = FramePairs(root, 'train', 'exo2ego', stored, stand_in)
epoch = batches(train, 12, seed=42, epoch=0)
asked = [train.rows[i][p] for batch in epoch for i, places in batch for p in places]
test_eq(sorted(asked), range(len(train.pairs)))
test_eq([sum(len(p) for _,p in b) for b in epoch[:-1]], [12]*(len(epoch)-1))
test_eq(str(epoch), str(batches(train, 12, 42, 0))); assert str(epoch)!=str(batches(train, 12, 42, 1))!=str(batches(train, 12, 43, 1))
[(i, p.tolist()) for i,p in epoch[0]]

# %% [markdown]
Each pair gets its own candidates as SPEC 7 has it: the ground truth at a random place, and around it the neighbours of the best proposal (`omama.sample_candidates`). They are drawn from (seed, epoch, pair), so a pair's candidates do not depend on what else is in the batch, nor on which process it lands. A candidate is a row of `dest`; the rows that nobody drew are left out, and what several objects drew is computed once.

# %%
#| export
class Sample(NamedTuple):
    "What the matcher is shown of a frame pair in training"
    pair:FramePair
    index:Tensor  # int64 [B, n], the candidates' rows in `pair.dest`
    target:Tensor # int64 [B], where in a row of `index` the ground truth is
    valid:Tensor  # bool [B, n], `False` where there was nothing to put

def draw_sample(
    pair:FramePair,
    seed:int, epoch:int,
    n:int=32,             # Candidates of each object
    keep_out:bool=False   # Keep proposals that are the object itself out of the negatives (SPEC 13)
) -> Sample:
    "Candidates for each object of a frame pair"
    drawn = []
    for row, truth, iou, boxes in zip(pair.rows, pair.truth, pair.iou, pair.box_iou):
        same = iou>=.5 if keep_out and truth>=0 else None
        c = sample_candidates(pair.neighbours, boxes if truth>=0 else None, np.random.default_rng((seed, epoch, int(row))), n, same)
        drawn.append((np.where(c.index<0, max(truth, 0), c.index), c.target, c.valid))
    return Sample(pair, *(torch.from_numpy(np.stack(x)) for x in zip(*drawn)))

# %%
pair = train[3]
sample = draw_sample(pair, 42, 0, n=8)
for b in np.flatnonzero(pair.visible):
    test_eq(sample.index[b,sample.target[b]], pair.truth[b]); test_eq((sample.index[b]==int(pair.truth[b])).sum(), 1)
alone = draw_sample(pair.only([1]), 42, 0, n=8)
test_eq(alone.index[0], sample.index[1]); assert (draw_sample(pair, 42, 1, n=8).index!=sample.index).any()
kept = draw_sample(pair, 42, 0, n=8, keep_out=True)
for b in np.flatnonzero(pair.visible): assert not set(kept.index[b].tolist()) & set(np.flatnonzero(pair.iou[b]>=.5))

# %% [markdown]
`Samples` are the samples of an epoch's batches, of one process's share of them: with two processes, one takes a batch's first, third, … frame pair. Being a torch dataset, it can be loaded by workers in the background.

# %%
#| export
class Samples(torch.utils.data.Dataset):
    "The samples of an epoch, batch by batch"
    def __init__(self,
        pairs:FramePairs,
        batches:list,         # From `batches`
        draw,                 # Function of a `FramePair` that gives its `Sample`
        process:int=0,        # Which share of each batch
        processes:int=1       # Of how many
    ):
        self.pairs, self.batches, self.draw, self.process, self.processes = pairs, batches, draw, process, processes

    def __len__(self): return len(self.batches)

    def __getitem__(self, k:int) -> tuple[list[Sample],int]: # Samples; pairs in the whole batch
        share = self.batches[k][self.process::self.processes]
        return [self.draw(self.pairs[i].only(places)) for i, places in share], sum(len(places) for _, places in self.batches[k])

# %%
draw = partial(draw_sample, seed=42, epoch=0, n=8)
whole, *shares = [Samples(train, epoch, draw, k, n) for k, n in ((0, 1), (0, 2), (1, 2))]
test_eq(sorted(r for share in shares for s in share[0][0] for r in s.pair.rows), sorted(r for s in whole[0][0] for r in s.pair.rows))
test_eq({x[0][1] for x in (whole, *shares)}, {12})

# %% [markdown]
## The loss of a batch

The matcher sees a frame pair once: its objects, the drawn rows of `dest`, two maps. Each object's similarities are then gathered from its own candidates, and the loss is SPEC 9's.

The existence head, if it is trained, is asked what it will be asked in use: is the object among these *proposals*, the ground truth not being shown? Its loss is taken over all pairs, visible and not. Since most objects are visible, both kinds are weighted to count equally.

# %%
#| export
class Objective(nn.Module):
    "A matcher with its losses; gives the sums over pairs, so that shares of a batch can be added"
    def __init__(self,
        matcher:OMaMa,
        existence:float=0,    # Weight of the existence loss; 0 leaves the head untrained
        balance=(1., 1.),     # Weights of an absent and of a present object in it
        temperature:float=.07
    ):
        super().__init__()
        self.matcher, self.existence, self.temperature = matcher, existence, temperature
        self.register_buffer('balance', torch.tensor(balance, dtype=torch.float32), persistent=False)
        if not existence: matcher.existence_head.requires_grad_(False)

    def forward(self, samples:list[Sample]) -> Tensor: # [2], sums of matching and existence loss
        none = sum(0*p.sum() for p in self.parameters() if p.requires_grad)
        return sum((self.losses(s) for s in samples), none.new_zeros(2)+none if not samples else 0)

    def losses(self, sample:Sample) -> Tensor: # [2]
        "The two losses of a frame pair, summed over its objects"
        pair, device, P = sample.pair, self.balance.device, len(sample.pair.proposals)
        used, index = torch.unique(torch.cat([torch.arange(P if self.existence else 0), sample.index.flatten()]), return_inverse=True)
        index = index[-sample.index.numel():].view_as(sample.index)
        source, dest, source_map, dest_map, index, target, valid = (
            x.to(device) for x in (pair.source, pair.dest[used], pair.source_map, pair.dest_map, index, sample.target, sample.valid))
        visible = torch.from_numpy(pair.visible).to(device)
        match = self.matcher.match(source[:,None], dest[None], source_map[None], dest_map[None])
        if not match.similarity.isfinite().all(): raise DataError('the similarities are not finite numbers', take=pair.take, camera=pair.dest_cam, frame=pair.frame)
        similarity = match.similarity.gather(1, index).masked_fill(~valid, -torch.inf)
        loss = matching_loss(similarity, target, visible.float(), self.temperature)*len(visible)
        if not self.existence: return torch.stack([loss, 0*loss])
        logits = self.matcher.existence(Match(match.similarity[:,:P], match.source, match.dest[:,:P]))
        return torch.stack([loss, F.cross_entropy(logits.float(), visible.long(), self.balance, reduction='sum')])

# %% [markdown]
The plain way, an object at a time with its own copies of everything, gives the same sums; so do the parts of a batch.

# %%
def plain_matcher(state, source_desc, dest_desc, source_map, dest_map):
    "The definition (SPEC 9): keys and values of every token; similarities [N] of one object"
    def linear(name, x): return F.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])
    def norm(name, x): return F.layer_norm(x, (768,), state[f'{name}.weight'], state[f'{name}.bias'])
    def heads(x): return x.unflatten(-1, (4, -1)).transpose(0, 1)
    def project(x): return F.conv2d(x[None], state['projection.weight'], state['projection.bias'])[0]
    def embed(descriptors, other, positions):
        tokens = norm('attention.norm_input', (project(other)+state[positions]).flatten(1).T)
        query = norm('attention.norm_input', descriptors[:,:768])
        q, k, v = heads(linear('attention.query', query)), heads(linear('attention.key', tokens)), heads(linear('attention.value', tokens))
        y = linear('attention.project', ((q@k.transpose(1, 2)/192**.5).softmax(-1)@v).transpose(0, 1).flatten(1))
        y = y + linear('attention.mlp.2', F.gelu(linear('attention.mlp.0', norm('attention.norm_output', y))))
        x = torch.cat([y, descriptors], 1)
        return F.normalize(linear('embed.4', F.relu(linear('embed.2', F.relu(linear('embed.0', x))))), dim=-1)
    source_desc, dest_desc = (project_descriptors(d, state['projection.weight'], state['projection.bias']) for d in (source_desc, dest_desc))
    return embed(dest_desc, source_map, 'source_positions')@embed(source_desc, dest_map, 'dest_positions')[0]

def plain_loss(state, sample):
    "Sum of visible · cross-entropy, an object after the other"
    pair, total = sample.pair, 0
    for b in np.flatnonzero(pair.visible):
        similarity = plain_matcher(state, pair.source[[b]], pair.dest[sample.index[b]], pair.source_map, pair.dest_map)
        total = total + F.cross_entropy(similarity[None]/.07, sample.target[[b]])
    return total

# %%
objective = Objective(matcher)
samples = whole[0][0]
state = dict(matcher.named_parameters())
test_close(objective(samples)[0], sum(plain_loss(state, s) for s in samples), eps=1e-3)
test_close(objective(samples), sum(objective([s]) for s in samples), eps=1e-3)
test_close(objective(samples), objective(shares[0][0][0])+objective(shares[1][0][0]), eps=1e-3)
test_eq(objective([]).detach(), torch.zeros(2)); assert objective([]).requires_grad
both = Objective(copy.deepcopy(matcher).requires_grad_(True), existence=1., balance=(3., 1.))
test_close(both(samples)[0], objective(samples)[0], eps=1e-3); assert both(samples)[1]>0
hidden = [s for i in range(len(train)) for s in [draw_sample(train[i], 42, 0, n=8)] if not s.pair.visible.all()][0]
hidden = hidden._replace(pair=hidden.pair._replace(truth=np.full_like(hidden.pair.truth, -1)))
test_eq(objective([hidden])[0].item(), 0); both([hidden]).sum().backward()
assert all(p.grad.isfinite().all() for p in both.parameters())
sick = samples[0]._replace(pair=samples[0].pair._replace(source_map=samples[0].pair.source_map*float('nan')))
test_fail(lambda: objective([sick]), contains=f'take {sick.pair.take}, camera {sick.pair.dest_cam}, frame {sick.pair.frame}: the similarities are not finite')

# %% [markdown]
What asking together is worth, forward and backward, on one frame pair of eight objects:

# %%
pair = max((train[i] for i in range(8)), key=lambda p: len(p.rows))
sample = draw_sample(pair, 42, 0)
one_by_one = [draw_sample(pair.only([b]), 42, 0) for b in range(len(pair.rows))]
def together(): objective([sample]).sum().backward()
def apart(): objective(one_by_one).sum().backward()
def seconds(f): start = time.perf_counter(); f(); return time.perf_counter()-start
times = [(seconds(apart), seconds(together)) for _ in range(3)]
print(f'{len(pair.rows)} objects together: {np.median([a/b for a,b in times]):.1f} times faster')

# %% [markdown]
## A projection that starts well

The published weights expect 768 channels. Any other backbone comes with a 1×1 projection, which starts at random; what it is given is worth a thought when training starts from nothing.

Not all channels are of the same use. Over the sights of one object, in both views and at all times, some hardly change, and others change with every turn of it. Let $\mu, \sigma$ be each channel's mean and deviation over candidates, and $S$ the covariance of $z = (d-\mu)/\sigma$ within the objects of the training takes. The transformation $T = S_\lambda^{-1/2}$, with $\lambda$ added to the eigenvalues as there are few objects, makes what changes within an object equally small in all directions (it is the linear half of Fisher's discriminant analysis). The projection starts as $W = Q\,T/\sigma$, $b = -W\mu$ with a random rotation $Q$: still one linear map, trained on as before.

It also settles a question of scale. What the matcher embeds is `[context, descriptor]`; the context has been through a LayerNorm and is of order one per channel, whatever the backbone, while the descriptor has the backbone's own scale. A network that is fed with tokens of unit length sees nearly only context, which hardly differs between the candidates of a frame; after whitening the descriptor is of order one, too. (What the report calls its baselines for DINOv3 and ResNet-50 are projections that were never trained; SPEC 13.)

# %%
#| export
def object_sights(
    pairs:FramePairs, # Training pairs
    n:int=256         # Frame pairs to look at, evenly over all
) -> tuple[Tensor,dict]: # float32 [M, C]; (take, object) → float32 [K, C]
    "Mask descriptors of candidates, and those of each object in both views"
    candidates, sights = [], {}
    for i in np.unique(np.linspace(0, len(pairs)-1, n).astype(int)):
        pair, C = pairs[int(i)], pairs.features.dim
        candidates.append(pair.dest[:,:C])
        for b, name in enumerate(pairs.names(int(i))):
            seen = [pair.source[b,:C], *([pair.dest[pair.truth[b],:C]] if pair.truth[b]>=0 else [])]
            sights.setdefault((pair.take, name), []).extend(s for s in seen if s.any())
    candidates = torch.cat(candidates)
    return candidates[(candidates!=0).any(1)], {k: torch.stack(v) for k,v in sights.items() if len(v)>1}

# %%
#| export
@torch.no_grad()
def whiten_projection(
    matcher:OMaMa,    # With a projection; changed in place
    pairs:FramePairs, # Training pairs
    shrink:float=.3   # Added to the eigenvalues of the covariance of standardised channels
):
    "Start the projection so that descriptors vary around 0, and equally in all directions within an object"
    if matcher.dim==WIDTH: raise ArgumentError(f'this matcher has no projection to start: its features have {WIDTH} channels')
    candidates, sights = object_sights(pairs)
    mean, std = candidates.mean(0), candidates.std(0)+1e-3
    within = torch.cat([(s-s.mean(0))/std for s in sights.values()])
    values, vectors = torch.linalg.eigh(within.T@within/max(len(within)-len(sights), 1))
    whitened = vectors/(values.clamp(min=0)+shrink).sqrt()/std[:,None]
    whitened /= ((candidates-mean)@whitened).square().mean().sqrt()
    weight = nn.init.orthogonal_(torch.empty(WIDTH, matcher.dim))@whitened.T
    matcher.projection.weight.copy_(weight[...,None,None]); matcher.projection.bias.copy_(-weight@mean)

# %%
def lengths(matcher):
    "Mean length of context and of projected descriptor over the candidates of some frame pairs"
    found, kept = [], {}
    hook = matcher.embed[0].register_forward_pre_hook(lambda _, x: kept.update(x=x[0].detach()))
    for i in range(4): matcher_scores(matcher)(train[i]); found.append([kept['x'][:,:WIDTH].norm(dim=1).mean(), kept['x'][:,WIDTH:].norm(dim=1).mean()])
    hook.remove(); return np.mean(found, 0)

torch.manual_seed(0)
start = {}
for k in ('random', 'whitened'):
    fresh = OMaMa(stored.grid('exo'), stored.grid('ego'), stored.dim)
    if k=='whitened': whiten_projection(fresh, train)
    start[k] = dict(zip(('context', 'descriptor'), lengths(fresh))) | {'IoU on val, untrained': evaluate(truth, predict(matcher_scores(fresh), val)).summary['iou']}
assert start['whitened']['descriptor'] > start['whitened']['context']
pd.DataFrame(start).T.round(2)

# %%
candidates, sights = object_sights(train)
project = lambda d: F.conv2d(d[...,None,None], fresh.projection.weight, fresh.projection.bias)[...,0,0].detach()
test_close(project(candidates).mean(0), np.zeros(WIDTH), eps=1e-3)
test_close(project(candidates).square().mean()*WIDTH/stored.dim, 1, eps=1e-2)
within = torch.cat([project(s)-project(s).mean(0) for s in sights.values()])
plain = torch.cat([(s-s.mean(0))/candidates.std(0) for s in sights.values()])
def spread(x): return torch.linalg.eigvalsh(x.T@x)[-20:].mean()/torch.linalg.eigvalsh(x.T@x)[-200:].mean()
assert spread(within) < spread(plain)/1.5
test_fail(lambda: whiten_projection(OMaMa((2, 2), (2, 2)), train), contains='no projection')

# %% [markdown]
## The run folder

`root/runs/<name>/` is all that is left of a training, and all that a report needs:

| file | what |
|---|---|
| `config.json` | direction, features, settings: what would make the same run again |
| `history.csv` | a row an epoch: losses, and the benchmark's metrics on val |
| `best/` | the matcher with the best validation IoU, as `OMaMa.save_pretrained` writes it |
| `last.pt` | matcher, optimizer and place, to go on from; tensors and plain values, read with `weights_only=True` |
| `environment.json` | versions and machine |

The settings are the report's unless something else is said (SPEC 10).

# %%
#| export
@dataclass
class Settings:
    "What decides how a matcher is trained; the defaults are the report's"
    epochs:int=10            # Epochs
    batch_size:int=12        # Pairs in a batch, over all processes
    lr:float=8e-6            # AdamW's learning rate at the start
    lowest_lr:float=1e-6     # And at the end of its cosine
    weight_decay:float=.01   # AdamW's
    clip:float=1.            # Norm at which gradients are clipped; 0 for never
    candidates:int=32        # Candidates of a pair in training
    order:int=2              # Of the adjacency that negatives come from
    keep_out:bool=False      # Keep proposals that are the object itself out of the negatives
    existence:float=0.       # Weight of the existence head's loss; 0 leaves it untrained
    whiten:bool=False        # Start the projection with `whiten_projection`
    count:int=None           # Train on so many pairs, drawn once
    balanced:bool=False      # Draw them balanced over (take, object)
    init:str=None            # Start from this checkpoint: what `save_pretrained` wrote, or the reference's
    seed:int=42              # Of the weights, the order, and the candidates

PRESETS = {'report': {}, 'report-dinov3': dict(batch_size=4, candidates=16), 'reference': dict(epochs=3, batch_size=24, lr=8e-5, clip=0.),
           'mini': dict(epochs=5, batch_size=32, lr=1e-4, existence=.2, whiten=True, keep_out=True)}

# %%
test_eq((Settings().epochs, Settings().batch_size, Settings().lr, Settings().clip), (10, 12, 8e-6, 1))
for preset in PRESETS.values(): Settings(**preset)
pd.DataFrame({k: asdict(Settings(**p)) for k,p in PRESETS.items()}).T.drop(columns=['count', 'balanced', 'init', 'lowest_lr', 'weight_decay', 'seed'])

# %%
#| export
class Run:
    "A training's folder"
    def __init__(self, folder:str|Path):
        self.folder = Path(folder)
        if not (self.folder/'config.json').is_file(): raise FileError('this is no run: it has no config.json', file=self.folder)

    @property
    def name(self) -> str: return self.folder.name
    @property
    def root(self) -> Path: "The root it was trained on"; return self.folder.parent.parent
    @property
    def config(self) -> dict: "direction, features, settings, version"; return read_json(self.folder/'config.json')
    @property
    def history(self) -> pd.DataFrame: "A row an epoch"; return pd.read_csv(self.folder/'history.csv')
    @property
    def finished(self) -> bool:
        "Whether all epochs are done"
        return (self.folder/'history.csv').is_file() and len(self.history)>=self.config['settings']['epochs']

    def matcher(self,
        which:str='best' # 'best' or 'last'
    ) -> OMaMa:
        "The matcher with the best validation IoU, or that of the last epoch"
        if which not in ('best', 'last'): raise ArgumentError(f"which must be 'best' or 'last', not {which!r}")
        if which=='best': return OMaMa.from_pretrained(self.folder/'best')
        state = read_progress(self.folder)
        matcher = OMaMa(*state['grids'], state['dim'])
        matcher.load_state_dict(state['matcher'])
        return matcher

# %%
#| export
def read_progress(
    folder:str|Path # Of a run
) -> dict:
    "What `last.pt` holds; `FileError` if it is missing or damaged"
    path = Path(folder)/'last.pt'
    if not path.is_file(): raise FileError('the run has no checkpoint yet', file=path)
    try: return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e: raise FileError(f'not a checkpoint that can be read safely ({type(e).__name__}); is it whole?', file=path) from None

def environment() -> dict:
    "Versions and machine, for the record"
    from importlib.metadata import version
    packages = ('torch', 'timm', 'numpy', 'pandas', 'accelerate', 'safetensors')
    return dict(egoexo_corr=__version__, python=platform.python_version(), system=f'{platform.system()} {platform.machine()}', threads=torch.get_num_threads(),
                device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU', **{p: version(p) for p in packages})

@contextmanager
def _locked(folder:Path):
    "Only one process at a time trains a run"
    import fcntl
    with open(folder/'.lock', 'w') as lock:
        try: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError: raise FileError('this run is being trained by another process', file=folder) from None
        yield

# %%
test_fail(lambda: Run(scratch), contains='this is no run')
test_fail(lambda: read_progress(scratch), contains='no checkpoint yet')
(scratch/'last.pt').write_bytes(b'PK\3\4 half a file'); test_fail(lambda: read_progress(scratch), contains='is it whole?')
with _locked(scratch): test_fail(lambda: _locked(scratch).__enter__(), contains='trained by another process')
environment()['system']

# %% [markdown]
Opening a run decides what `fit` does: begin, go on, or refuse. A run that was begun with other settings is not gone on with, and one that is there is not overwritten.

# %%
#| export
def open_run(
    root:str|Path, # A root
    name:str,      # Of the run: a folder below `root/runs`
    config:dict,   # What decides about its weights
    resume:bool    # Go on with it if it is there
) -> Run:
    "A new run, or the one that is there if it has the same configuration"
    folder, config = inside(Path(root)/'runs', name), json.loads(json.dumps(config))
    if (folder/'config.json').is_file():
        if not resume: raise ArgumentError('this run exists; resume it, take another name, or delete its folder', file=folder)
        there, here = ({**c, **c.get('settings', {}), **c.get('features', {}), 'settings': 0, 'features': 0} for c in (Run(folder).config, config))
        if other := differences(here, there): raise ArgumentError(f'this run was begun with {other}', file=folder)
    else:
        write_json(folder/'environment.json', environment(), indent=1)
        write_json(folder/'config.json', config, indent=1)
    return Run(folder)

# %%
config = dict(direction='exo2ego', features=dict(backbone='x'), settings=asdict(Settings()))
open_run(scratch, 'a', config, resume=False)
test_eq(open_run(scratch, 'a', config, resume=True).config, config)
test_fail(lambda: open_run(scratch, 'a', config, resume=False), contains='this run exists; resume it, take another name')
other = dict(config, settings=asdict(Settings(lr=1e-4)))
test_fail(lambda: open_run(scratch, 'a', other, resume=True), contains='this run was begun with lr 8e-06 instead of 0.0001')
test_fail(lambda: open_run(scratch, '../a', config, resume=False), contains='cannot be a file name')

# %% [markdown]
The matcher to start from: random, with the projection level if that is asked for; or a checkpoint, ours or the reference's, which must be for these features.

# %%
#| export
def first_matcher(
    pairs:FramePairs,   # The training pairs
    settings:Settings
) -> OMaMa:
    "The matcher before the first step"
    features, d = pairs.features, pairs.direction
    grids, init = (features.grid(d.source), features.grid(d.dest)), settings.init
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        ours = init is not None and Path(init).is_dir()
        matcher = OMaMa.from_pretrained(init, *grids) if ours else OMaMa.from_reference(init, *grids, features.dim) if init else OMaMa(*grids, features.dim)
        if matcher.dim!=features.dim: raise ArgumentError(f'this checkpoint is for features of {matcher.dim} channels, and these have {features.dim}', file=init)
        if settings.whiten and not ours: whiten_projection(matcher, pairs)
    return matcher

# %%
torch.manual_seed(1); first = first_matcher(train, Settings(whiten=True))
torch.manual_seed(2); again = first_matcher(train, Settings(whiten=True))
for a, b in zip(first.state_dict().values(), again.state_dict().values()): test_eq(a, b)
first.save_pretrained(scratch/'first')
test_eq(first_matcher(train, Settings(init=scratch/'first')).embed[0].weight.detach(), first.embed[0].weight.detach())
OMaMa((9, 16), (12, 12), 32).save_pretrained(scratch/'narrow')
test_fail(lambda: first_matcher(train, Settings(init=scratch/'narrow')), contains='this checkpoint is for features of 32 channels, and these have 176')
torch.save({'pos_embed_Q': torch.zeros(1, 4, 8), 'pos_embed_T': torch.zeros(1, 4, 8)}, scratch/'odd.pt')
test_fail(lambda: first_matcher(train, Settings(init=scratch/'odd.pt')), contains='expected [1, any, 768]')
test_fail(lambda: first_matcher(train, Settings(init=scratch/'nowhere.pt')), contains='no such checkpoint')

# %% [markdown]
## The loop

A `Trainer` is the state of a training: the objective, its optimizer, and the place (epoch, step in the epoch, sums so far, history, best IoU). What a step does can be read in eight lines, and where it may fail it says where.

# %%
#| export
class Trainer:
    "A training in progress"
    def __init__(self,
        run:Run,
        train:FramePairs,
        val:FramePairs,
        settings:Settings,
        accelerator # Accelerate's
    ):
        self.run, self.train, self.val, self.settings, self.accelerator = run, train, val, settings, accelerator
        matcher = first_matcher(train, settings)
        objective = Objective(matcher, settings.existence, _balance(train) if settings.existence else (1., 1.))
        parameters = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
        self.matcher, self.parameters = matcher, parameters
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.steps = len(self.batches(0))
        self.epoch, self.step, self.sums, self.best, self.history = 0, 0, torch.zeros(3, dtype=torch.float64), -1., []
        self.truth = ground_truth(val.root, val.pairs, val.direction)

    def batches(self, epoch:int) -> list: "The batches of an epoch"; return batches(self.train, self.settings.batch_size, self.settings.seed, epoch)

    def lr(self) -> float:
        "The learning rate of the next step: half a cosine from the first step to the last"
        s = self.settings
        done = (self.epoch*self.steps+self.step)/(s.epochs*self.steps)
        return s.lowest_lr + (s.lr-s.lowest_lr)*(1+math.cos(math.pi*done))/2

def _balance(pairs:FramePairs) -> tuple[float,float]:
    "Weights with which absent and present objects count equally"
    there = np.concatenate([[o in seen for o in pairs.names(i)] for i, (t, _, c, f) in enumerate(pairs.keys) for seen in [pairs.objects(t, c, f)]])
    return tuple(len(there)/2/max(n, 1) for n in ((~there).sum(), there.sum()))

# %%
#| export
@patch
def take_step(self:Trainer, samples:list[Sample], total:int):
    "One step of the optimizer on this process's share of a batch of `total` pairs"
    for group in self.optimizer.param_groups: group['lr'] = self.lr()
    sums = self.objective(samples)
    loss = (sums[0]+self.settings.existence*sums[1])*self.accelerator.num_processes/total
    self.optimizer.zero_grad()
    self.accelerator.backward(loss)
    sums = self.accelerator.reduce(sums.detach(), 'sum').cpu()
    norm = self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip or math.inf)
    if not (sums.isfinite().all() and math.isfinite(norm)): raise DataError(f'the loss is {sums[0].item()/total:g}, the norm of its gradient {norm:g}')
    self.optimizer.step()
    self.sums += torch.tensor([*sums, total]); self.step += 1

@patch
def train_epoch(self:Trainer, save_every:int, workers:int):
    "The steps of the epoch that are still to do"
    from tqdm import tqdm
    a, s = self.accelerator, self.settings
    draw = partial(draw_sample, seed=s.seed, epoch=self.epoch, n=s.candidates, keep_out=s.keep_out)
    samples = Samples(self.train, self.batches(self.epoch)[self.step:], draw, a.process_index, a.num_processes)
    self.objective.train()
    with tqdm(total=self.steps, initial=self.step, desc=f'epoch {self.epoch+1}/{s.epochs}', unit='step', disable=None if a.is_main_process else True) as bar:
        for share, total in torch.utils.data.DataLoader(samples, batch_size=None, num_workers=workers, collate_fn=_as_is):
            try: self.take_step(share, total)
            except EgoExoError as e: raise e.at(run=self.run.name, epoch=self.epoch+1, step=self.step+1) from None
            bar.update(); bar.set_postfix(loss=f'{self.sums[0]/self.sums[2]:.3f}')
            if self.step%save_every==0: self.save()

def _as_is(x): return x

# %% [markdown]
After an epoch the validation pairs are answered, each process its share, and evaluated by the benchmark's own evaluator. Then the order of writing matters: first `best/`, if it is the best so far, and last `last.pt`, by which the epoch counts as done. A kill between the two costs an epoch, which is then done again to the same weights.

# %%
#| export
@patch
def validate(self:Trainer) -> dict:
    "Loss and metrics on the validation pairs"
    from accelerate.utils import gather_object
    a, size = self.accelerator, self.val.features.image_size(self.val.direction.dest)
    self.objective.eval()
    scores = matcher_scores(self.matcher, existence=self.settings.existence>0)
    answers = gather_object([x for i in range(a.process_index, len(self.val), a.num_processes) for x in _answers(scores, self.val[i], size)])
    summary = evaluate(self.truth, _prediction(self.val, answers), self.val.direction).summary
    return dict(val_loss=float(np.mean([x.loss for x in answers])), **{k: float(summary[k]) for k in ('iou', 'shape_acc', 'location_score', 'balanced_acc')})

@patch
def end_epoch(self:Trainer):
    "Validate, keep the best matcher, write the checkpoint"
    losses = dict(zip(('train_loss', 'existence_loss'), (self.sums[:2]/self.sums[2]).tolist()))
    row = dict(epoch=self.epoch+1, lr=self.lr(), **losses, **self.validate())
    self.history.append(row)
    if row['iou']>self.best:
        self.best = row['iou']
        if self.accelerator.is_main_process: self.matcher.save_pretrained(self.run.folder/'best')
    self.epoch, self.step, self.sums = self.epoch+1, 0, torch.zeros_like(self.sums)
    self.save()

@patch
def save(self:Trainer):
    "Write `last.pt` and the history"
    if not self.accelerator.is_main_process: return
    state = dict(matcher=self.matcher.state_dict(), grids=[self.matcher.source_grid, self.matcher.dest_grid], dim=self.matcher.dim, optimizer=self.optimizer.state_dict(),
                 **{k: getattr(self, k) for k in ('epoch', 'step', 'sums', 'best', 'history')})
    with atomic_path(self.run.folder/'last.pt') as tmp: torch.save(state, tmp)
    with atomic_path(self.run.folder/'history.csv') as tmp: pd.DataFrame(self.history).to_csv(tmp, index=False)

@patch
def restore(self:Trainer):
    "Go on from `last.pt`, if it is there"
    if not (self.run.folder/'last.pt').is_file(): return
    state = read_progress(self.run.folder)
    self.matcher.load_state_dict(state['matcher']); self.optimizer.load_state_dict(state['optimizer'])
    for k in ('epoch', 'step', 'sums', 'best', 'history'): setattr(self, k, state[k])

# %% [markdown]
And `fit` puts it together. What is written of the features into `config.json` is how they were made, not where from, so a run on stored features and one on the fly have the same configuration.

# %%
#| export
def training_pairs(root:str|Path, direction:str, settings:Settings) -> pd.DataFrame:
    "The training pairs of a root, or as many of them as the settings say"
    path = pairs_path(root, 'train', direction)
    table, pairs = read_pairs(path, direction), read_json(path)
    if settings.count is None: return table
    kept = {id(p) for p in sample_by_count(pairs, settings.count, settings.seed, settings.balanced)}
    return table[[id(p) in kept for p in pairs]]

def _accelerator(mixed_precision:str|None):
    from accelerate import Accelerator
    gpu = torch.accelerator.is_available()
    if mixed_precision not in (None, 'no', 'bf16'): raise ArgumentError(f"mixed_precision must be 'bf16' or 'no', not {mixed_precision!r}")
    return Accelerator(cpu=not gpu, mixed_precision=mixed_precision or ('bf16' if gpu else 'no'))

# %%
#| export
@delegates(Settings)
def fit(
    root:str|Path,            # A root with pairs
    name:str,                 # Of the run; its folder is `root/runs/name`
    features,                 # `StoredFeatures` or `LiveFeatures`
    proposals,                # A `ProposalStore`, or a function of take, camera and frame that gives RLEs of one size
    direction:str='exo2ego',  # 'exo2ego' or 'ego2exo'
    resume:bool=False,        # Go on with the run if it is there
    each_epoch=(),            # Functions that are called with the history after each epoch
    save_every:int=500,       # Steps after which the checkpoint is written within an epoch
    workers:int=0,            # Processes that read samples ahead
    mixed_precision:str=None, # 'bf16' or 'no'; 'bf16' where there is a GPU by default
    **kwargs
) -> Run:
    "Train a matcher"
    s, a = Settings(**kwargs), _accelerator(mixed_precision)
    config = dict(direction=str(Direction(direction)), features=features.made_with, settings={k: v if not isinstance(v, Path) else str(v) for k,v in asdict(s).items()}, version=__version__)
    with a.main_process_first(): run = open_run(root, name, config, resume or not a.is_main_process)
    if run.finished: return run
    with _locked(run.folder) if a.is_main_process else nullcontext():
        train, val = (FramePairs(root, split, direction, features, proposals, pairs, s.order)
                      for split, pairs in (('train', training_pairs(root, direction, s)), ('val', None)))
        trainer = Trainer(run, train, val, s, a)
        trainer.restore()
        while trainer.epoch<s.epochs:
            trainer.train_epoch(save_every, workers)
            trainer.end_epoch()
            if a.is_main_process:
                for f in each_epoch: f(pd.DataFrame(trainer.history))
    return run

# %% [markdown]
In a notebook, a curve that grows while one waits:

# %%
#| export
class LiveCurve:
    "For `each_epoch` of `fit`: losses and validation metrics, drawn anew after each epoch"
    def __init__(self): self.handle = None

    def __call__(self, history:pd.DataFrame):
        import matplotlib.pyplot as plt
        from IPython.display import display
        fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), dpi=80, layout='constrained')
        for k in ('train_loss', 'val_loss'): left.plot(history.epoch, history[k], marker='.', label=k.replace('_', ' '))
        for k, label in (('iou', 'IoU'), ('balanced_acc', 'balanced accuracy')): right.plot(history.epoch, history[k], marker='.', label=label)
        for ax in (left, right): ax.set(xlabel='epoch', xticks=history.epoch); ax.grid(alpha=.3); ax.legend(fontsize=8)
        if self.handle is None: self.handle = display(fig, display_id=True)
        else: self.handle.update(fig)
        plt.close(fig)

# %%
quick = PRESETS['mini'] | dict(epochs=3, candidates=8)
run = fit(root, 'quick', stored, stand_in, each_epoch=[LiveCurve()], **quick)

# %%
history = run.history
test_eq(history.epoch.tolist(), [1, 2, 3]); assert history.train_loss.iloc[-1]<history.train_loss[0]
test_eq(run.config['settings']['lr'], 1e-4); test_eq(run.config['features']['backbone'], backbone.name)
best = evaluate(truth, predict(matcher_scores(run.matcher(), existence=True), val)).summary
test_close(best['iou'], history.iou.max(), eps=1e-9)
last = evaluate(truth, predict(matcher_scores(run.matcher('last'), existence=True), val)).summary
test_close([last['iou'], last['balanced_acc']], history[['iou', 'balanced_acc']].iloc[-1].tolist(), eps=1e-9)
test_eq(fit(root, 'quick', stored, stand_in, resume=True, **quick).history, history)
history.round(3)

# %% [markdown]
The learning rate is PyTorch's cosine:

# %%
trainer = Trainer(run, train, val, Settings(**quick), _accelerator(None))
optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-4)
cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3*trainer.steps, eta_min=1e-6)
for trainer.epoch in range(3):
    for trainer.step in range(trainer.steps):
        test_close(trainer.lr(), optimizer.param_groups[0]['lr'], eps=1e-12); optimizer.step(); cosine.step()

# %% [markdown]
## Ten steps, the plain way

The same weights, samples and order through a plain implementation: attention with keys and values of every token, an object at a time, torch's own clipping and AdamW. Ten losses agree.

# %%
s = Settings(lr=1e-4, batch_size=4, candidates=8)
few = train.pairs.iloc[:40]
some = FramePairs(root, 'train', 'exo2ego', stored, stand_in, pairs=few)
trainer = Trainer(run, some, val, s, _accelerator(None))
state = {k: v.detach().clone().requires_grad_('existence' not in k) for k,v in trainer.matcher.named_parameters()}
optimizer = torch.optim.AdamW([v for v in state.values() if v.requires_grad], lr=s.lr, weight_decay=s.weight_decay)
samples, losses = Samples(some, trainer.batches(0), partial(draw_sample, seed=s.seed, epoch=0, n=s.candidates)), []
for k in range(10):
    for group in optimizer.param_groups: group['lr'] = trainer.lr()
    share, total = samples[k]
    before = trainer.sums[0].item()
    trainer.take_step(share, total)
    loss = sum(plain_loss(state, x) for x in share)/total
    optimizer.zero_grad(); loss.backward()
    torch.nn.utils.clip_grad_norm_([v for v in state.values() if v.requires_grad], s.clip)
    optimizer.step()
    losses.append((loss.item(), (trainer.sums[0].item()-before)/total))
losses = np.array(losses)
test_close(losses[:,0], losses[:,1], eps=1e-4)
print(f'losses {losses[0,0]:.3f} to {losses[-1,0]:.3f}; largest difference {np.abs(np.diff(losses)).max():.0e}')

# %% [markdown]
## Killed, and gone on with

Three processes train the same small run. The first is left alone. The second is killed (`SIGKILL`) in the middle of its second epoch, between two checkpoints; the third while it writes one. Both are started again with `resume=True`, and end with the weights of the first, bit for bit.

# %%
program = scratch/'train.py'
program.write_text(f'''
import json, os, signal, sys
from functools import lru_cache
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from egoexo_corr.masks import rle_decode, rle_encode, rle_resize
from egoexo_corr.core import view_of
from egoexo_corr.dataset import Annotations
from egoexo_corr import training
from egoexo_corr.training import StoredFeatures, Trainer, fit

{inspect.getsource(stand_in)}
if __name__=='__main__':
    root, name, when, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    annotations, calls, take_step, replace = Annotations(root), [], Trainer.take_step, os.replace
    def step(self, *args):
        calls.append(1)
        if len(calls)==when: os.kill(os.getpid(), signal.SIGKILL)
        take_step(self, *args)
    def write(source, dest):
        if str(dest).endswith('last.pt'): calls.append(1)
        if len(calls)==-when: os.kill(os.getpid(), signal.SIGKILL)
        replace(source, dest)
    if when>0: Trainer.take_step = step
    if when<0: os.replace = write
    fit(root, name, StoredFeatures(root, {backbone.name!r}), stand_in, **how)
''')
small = dict(epochs=2, batch_size=16, lr=1e-4, candidates=8, existence=.2, count=80, whiten=True)

def start(name, when=0, launch=(), **how):
    "The program in a process of its own"
    done = subprocess.run([sys.executable, *launch, str(program), str(root), name, str(when), json.dumps(small | how)],
                          capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    return done.returncode, done.stderr

def weights(name): return {**Run(root/'runs'/name).matcher('last').state_dict(), **{f'best {k}': v for k,v in Run(root/'runs'/name).matcher().state_dict().items()}}

# %%
test_eq(start('whole')[0], 0)
test_eq(start('middle', when=8, save_every=2)[0], -signal.SIGKILL); test_eq(read_progress(root/'runs'/'middle')['step'], 2)
test_eq(start('write', when=-2)[0], -signal.SIGKILL)
test_eq(Run(root/'runs'/'write').finished, False); assert (root/'runs'/'write'/'.last.pt.tmp').exists()
whole = weights('whole')
for name in ('middle', 'write'):
    test_eq(start(name, resume=True, save_every=2 if name=='middle' else 500)[0], 0)
    again = weights(name); test_eq(set(again), set(whole))
    for k in whole: test_eq(again[k], whole[k])
    test_eq(Run(root/'runs'/name).history, Run(root/'runs'/'whole').history)
Run(root/'runs'/'whole').history.round(3)

# %% [markdown]
## Two processes

`accelerate launch` starts the program twice. Each process takes every other frame pair of each batch, Accelerate adds up the gradients, and the result is that of one process up to the order of additions. (`--multi_gpu` is its word for several processes on one machine; without a GPU they run on the CPU.)

# %%
launch = ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--main_process_port', '0',
          '--mixed_precision', 'no', '--dynamo_backend', 'no']
code, err = start('two', launch=launch); test_eq((code, err[-2000:] if code else ''), (0, ''))
two = weights('two')
worst = max((two[k]-whole[k]).norm()/whole[k].norm().clamp(min=1e-3) for k in whole)
assert worst<1e-3
test_close(Run(root/'runs'/'two').history.drop(columns='iou').values, Run(root/'runs'/'whole').history.drop(columns='iou').values, eps=5e-3)
print(f'weights differ by {worst:.0e} of their norm at most')

# %% [markdown]
## On the fly

With `LiveFeatures` no store is needed; every map is made again at every step. The result is the same up to the half precision in which a store keeps maps.

# %%
direct = fit(root, 'direct', LiveFeatures(root, backbone), stand_in, **small)
test_close(direct.history.train_loss, Run(root/'runs'/'whole').history.train_loss, eps=.02)
test_eq(direct.config, Run(root/'runs'/'whole').config)

# %% [markdown]
## What stops a training

A loss that is no number stops it and says where, and the last good checkpoint stays. Features of another backbone do not go with a run's matcher.

# %%
class Sick(StoredFeatures):
    "Features that are NaN once they are told to be"
    factor = 1
    def map(self, *where): return super().map(*where)*self.factor
    def fall_ill(self, history): self.factor = float('nan')

sick = Sick(root, backbone.name)
test_fail(lambda: fit(root, 'sick', sick, stand_in, each_epoch=[sick.fall_ill], **small), contains='run sick, epoch 2, step 1, take')
test_eq(read_progress(root/'runs'/'sick')['epoch'], 1)
for k,v in Run(root/'runs'/'sick').matcher('last').state_dict().items(): assert v.isfinite().all()
exploding = small | dict(lr=1e30, clip=0.)
test_fail(lambda: fit(root, 'exploding', stored, stand_in, **exploding), contains='run exploding, epoch 1, step 2')

# %% [markdown]
Predicting with a run, the features are held against those it was trained on.

# %%
#| export
def run_scores(
    run:Run,          # A training
    features,         # What its matcher will be shown
    which:str='best'  # 'best' or 'last'
):
    "Scores by a run's matcher, for `predict`; `DataError` for other features than it was trained on"
    config = run.config
    if other := differences(config['features'], features.made_with): raise DataError(f'these features do not fit the run: they were made with {other}', file=run.folder)
    return matcher_scores(run.matcher(which), existence=config['settings']['existence']>0)

# %%
test = FramePairs(root, 'test', 'exo2ego', stored, stand_in)
prediction = predict(run_scores(run, stored), test)
answers = evaluate(ground_truth(root, 'test', 'exo2ego'), prediction)
larger = LiveFeatures(root, load('efficientnet-lite0', scale=.5))
test_fail(lambda: run_scores(run, larger), contains='these features do not fit the run: they were made with backbone efficientnet-lite0-x0.5 instead of efficientnet-lite0-x0.25')
test_fail(lambda: run.matcher('first'), contains="'best' or 'last'")
{k: round(v, 3) for k,v in answers.summary.items()}

# %% [markdown]
The other direction, where each object has one source camera and two destinations:

# %%
back = FramePairs(root, 'test', 'ego2exo', stored, stand_in)
answers = predict(oracle_scores, back)
test_eq(list(answers), ['ego-exo'])
some_object = next(iter(answers['ego-exo']['results'].values()))['masks']
test_eq(max(len(cameras) for cameras in some_object.values()), 2)
test_eq(evaluate(ground_truth(root, 'test', 'ego2exo'), answers, 'ego2exo').summary['n'], len(back.pairs))

# %% [markdown]
## Does an answer stay with the object?

Frames are answered one by one, and an object that is right in one frame may be another's mask in the next. **Temporal consistency** asks how much a prediction overlaps with the prediction of the frame before, and how much the truth does. Objects move and so does the head, so the truth's own overlap is the measure; a matcher that jumps between look-alikes stays below it.

# %%
#| export
def temporal_consistency(
    truth:dict,             # Ground-truth JSON
    prediction:dict,        # Prediction JSON
    direction:str='exo2ego' # 'exo2ego' or 'ego2exo'
) -> pd.DataFrame:          # A row for each two successive frames in which the object is visible: take, object, source_cam, dest_cam, frame, iou_pred, iou_truth
    "IoU of an object's mask with the one of its previous annotated frame, predicted and true"
    results, rows = prediction[Direction(direction).results_key]['results'], []
    for take, result in results.items():
        for name, cameras in result['masks'].items():
            for key, answers in cameras.items():
                source = next(c for c in truth['annotations'][take]['masks'][name] if key.startswith(f'{c}_'))
                dest = key.removeprefix(f'{source}_')
                masks = truth['annotations'][take]['masks'][name].get(dest, {})
                frames = sorted((f for f in answers if f in masks), key=int)
                for a, b in zip(frames, frames[1:]):
                    predicted = rle_iou([answers[a]['pred_mask']], [answers[b]['pred_mask']])[0,0]
                    rows.append((take, name, source, dest, int(b), predicted, rle_iou([masks[a]], [masks[b]])[0,0]))
    return pd.DataFrame(rows, columns=['take', 'object', 'source_cam', 'dest_cam', 'frame', 'iou_pred', 'iou_truth'])

# %%
truth = ground_truth(root, 'val', 'exo2ego')
square, moved = (rle_encode(np.pad(np.ones((4, 4)), ((3, 3), (x, 6-x)))) for x in (0, 2))
toy = {'annotations': {'t': {'masks': {'cup': {'cam01': {'0': square}, 'aria01': {'0': square, '30': moved, '60': moved}}}, 'annotated_frames': {}}}}
said = {'exo-ego': {'results': {'t': {'masks': {'cup': {'cam01_aria01': {f: {'pred_mask': m, 'confidence': 1.} for f,m in (('0', square), ('30', square), ('60', moved))}}}, 'subsample_idx': []}}}}
test_close(temporal_consistency(toy, said)[['iou_pred', 'iou_truth']].values, [[1, 1/3], [1/3, 1]])
rows = {k: temporal_consistency(truth, predict(s, val))[['iou_pred', 'iou_truth']].mean() for k,s in dict(chance=chance_scores(0), cosine=cosine_scores, trained=run_scores(run, stored), oracle=oracle_scores).items()}
assert rows['chance'].iou_pred < rows['oracle'].iou_pred
pd.DataFrame(rows).T.round(3)

# %%
shutil.rmtree(scratch)
