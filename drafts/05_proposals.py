# %% [markdown]
# proposals

> Candidate masks for a frame, made by FastSAM, and a store that gives them back a frame at a time.

# %% [markdown]
O-MaMa does not draw masks. It is given the mask of an object in one view and a few dozen candidates in the other, and picks one. So the candidates are a ceiling: an object that no candidate covers is lost, whatever the matcher does. This notebook makes them, keeps them, and measures the ceiling.

The candidates come from **FastSAM** (Zhao et al., 2023, arXiv 2306.12156), which is YOLO's segmentation network with a single class, "anything". One pass gives, for each place of a grid, a score, a box and 32 coefficients (24 here) that mix a common set of *prototype masks* into the mask of whatever is there; non-maximum suppression removes what is proposed twice.

Two checkpoints matter here, and both run through the same class of ultralytics:

- `FastSAM-x.pt`, the reference's (SPEC 5), where the user has it;
- `data/weights/fastsam-mini.pt`, ours: a network a sixtieth of the size, trained from scratch on the simulator's training objects. It ships, so that everything after this notebook runs without a download. [Its recipe](#the-recipe) is at the end.

ultralytics is AGPL-3.0, unlike this library: this is the only module that imports it.

# %%
#| default_exp proposals

# %%
#| hide
from nbdev.showdoc import *

# %%
#| export
import json, logging, os
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Iterator, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import egoexo_corr
from egoexo_corr.core import ArgumentError, DataError, Direction, EgoExoError, FileError, atomic_path, inside, sha256, view_of, write_json
from egoexo_corr.dataset import SPLITS, Annotations, frames_of, load_frame, pairs_path, read_pairs
from egoexo_corr.masks import Runs, rle_areas, rle_boxes, rle_decode, rle_from_runs, rle_iou, rle_resize

# %%
import cv2, shutil, signal, subprocess, sys, tempfile, time, timeit, torch, yaml
import matplotlib.pyplot as plt
from fastcore.test import *
from egoexo_corr.dataset import frame_path, prepare, write_pairs
from egoexo_corr.masks import PALETTE, adjacency, draw_masks, rle_encode, rle_intersections

scratch = Path(tempfile.mkdtemp())
root = scratch/'root'
print(prepare('../data/mini', root, splits=('val', 'test')))
write_pairs(root, splits=('val', 'test'))[['split', 'direction', 'pairs']]

# %% [markdown]
## What a frame's proposals are

Masks as RLE, a score and a box each. Boxes follow from the masks (SPEC 4), so a proposal's box always fits its mask. A frame without a single proposal is a valid answer; it still knows the frame's size.

# %%
#| export
@dataclass(frozen=True)
class Proposals:
    "The candidate masks of one frame"
    size:tuple[int,int]  # (height, width) of the frame
    rles:list            # N RLEs of that size
    scores:np.ndarray    # float32 [N]; NaN where the source has none
    boxes:np.ndarray     # float32 [N, 4], xywh
    areas:np.ndarray     # int64 [N], pixels

    def __len__(self): return len(self.rles)

def make_proposals(
    size:tuple[int,int], # (height, width) of the frame
    rles,                # N RLEs of that size
    scores=None,         # [N]; NaN by default
    boxes=None           # [N, 4] xywh; from the masks by default
) -> Proposals:
    "Proposals from their masks"
    rles, size = list(rles), tuple(map(int, size))
    for i,r in enumerate(rles):
        if tuple(r['size'])!=size: raise DataError(f"proposal {i} has the size {r['size']}, its frame {list(size)}")
    scores = np.full(len(rles), np.nan) if scores is None else scores
    boxes = rle_boxes(rles) if boxes is None else boxes
    scores, boxes = np.asarray(scores, np.float32), np.asarray(boxes, np.float32).reshape(-1, 4)
    if not len(rles)==len(scores)==len(boxes): raise DataError(f'{len(rles)} masks, {len(scores)} scores and {len(boxes)} boxes do not belong together')
    return Proposals(size, rles, scores, boxes, np.asarray(rle_areas(rles), np.int64))

# %%
def square(x, y, side, size=(40, 60)):
    m = np.zeros(size, bool); m[y:y+side, x:x+side] = True
    return rle_encode(m)

p = make_proposals((40, 60), [square(5, 10, 20), square(50, 30, 1)], [.9, .2])
test_eq(p.boxes, [[5, 10, 19, 19], [50, 30, 0, 0]]); test_eq(p.areas, [400, 1])
nothing = make_proposals((40, 60), [])
test_eq((len(nothing), nothing.boxes.shape, nothing.scores.shape, nothing.size), (0, (0, 4), (0,), (40, 60)))
test_fail(lambda: make_proposals((40, 61), [square(5, 10, 20)]), contains='its frame [40, 61]')
test_fail(lambda: make_proposals((40, 60), [square(5, 10, 20)], [.9, .2]), contains='do not belong together')

# %% [markdown]
## Loading a checkpoint without trusting it

An ultralytics checkpoint is a pickled network, and unpickling can run any code. ultralytics offers a restricted loader (`torch.load(weights_only=True)` with a list of its own layers) but does not use it unless asked; here it always is. A file that needs anything else than layers is refused, whoever made it. ultralytics is also told to stay off the network: it neither looks for updates, nor fetches a file that is missing, nor installs packages.

# %%
#| export
WEIGHTS = Path(egoexo_corr.__file__).resolve().parent.parent/'data'/'weights'/'fastsam-mini.pt' # Ours
WHERE = 'https://docs.ultralytics.com/models/fast-sam' # The official ones

def _ultralytics():
    "The package: offline, quiet, and not to install anything"
    for name, value in dict(YOLO_OFFLINE='true', YOLO_AUTOINSTALL='false', YOLO_VERBOSE='false').items(): os.environ.setdefault(name, value)
    import ultralytics
    logging.getLogger('ultralytics').setLevel(logging.ERROR)
    return ultralytics

def load_fastsam(
    weights:str|Path=WEIGHTS # `fastsam-mini.pt`, `FastSAM-x.pt`, `FastSAM-s.pt`, or another YOLO segmentation checkpoint
):                           # ultralytics' `FastSAM`
    "ultralytics' FastSAM with a checkpoint, loaded as weights only"
    weights = Path(weights)
    if not weights.is_file():
        raise FileError(f'there are no weights here; official ones: {WHERE} (put the file there), ours: data/weights/fastsam-mini.pt in the repository', file=weights)
    FastSAM = _ultralytics().FastSAM
    from ultralytics.nn import tasks
    try:
        with patch.object(tasks, 'SAFE_LOAD', True): model = FastSAM(weights)
    except Exception as e: raise FileError(f'is not a checkpoint of a FastSAM network: damaged, or it holds more than layers ({type(e).__name__})', file=weights) from None
    if getattr(model.model, 'task', None)!='segment': raise FileError('is not a segmentation network', file=weights)
    return model

# %%
net = load_fastsam()
layers = sum(p.numel() for p in net.model.parameters())
print(f'{type(net).__name__}, {layers/1e6:.2f} million parameters, {WEIGHTS.stat().st_size/1e6:.1f} MB, one class: {net.names}')
assert WEIGHTS.stat().st_size<8e6
test_eq({p.dtype for p in net.model.parameters()}, {torch.float32})

# %% [markdown]
What can be wrong with a file, in one line each. The last one is a checkpoint that would run a command when unpickled: it is refused, and the command is not run.

# %%
class Evil:
    def __reduce__(self): return os.system, (f'touch {scratch}/ran',)

bad = scratch/'bad.pt'
test_fail(lambda: load_fastsam(scratch/'FastSAM-x.pt'), contains='official ones: https://docs.ultralytics.com/models/fast-sam')
for content in (b'', b'not a checkpoint', WEIGHTS.read_bytes()[:9999]):
    bad.write_bytes(content); test_fail(lambda: load_fastsam(bad), contains='is not a checkpoint of a FastSAM network')
for content in ({'model': Evil()}, {'a': 1}, [1, 2]):
    torch.save(content, bad); test_fail(lambda: load_fastsam(bad), contains='is not a checkpoint')
assert not (scratch/'ran').exists()

# %% [markdown]
## The proposer

The library is RGB throughout, ultralytics reads arrays as **BGR**. The report's script handed it RGB arrays, so that its network saw blue hands and orange skies (SPEC 5); here channels are turned at this edge and nowhere else.

Masks are *retina masks* (SPEC 5): the mixed prototypes are resampled at the frame's own size before they are thresholded at 0, that is at probability ½, instead of enlarging a small binary mask.

SPEC 5's settings, image size 1024, confidence 0.4 and suppression from an IoU of 0.9, are those of the official checkpoints. Ours has its own, chosen on the val takes [below](#confidence-and-size): each view at its own size, since objects are several times smaller in an exo frame than in an ego frame; and a low confidence, since a network that trained for an hour is less sure of itself than one that trained for days.

# %%
#| export
OFFICIAL = dict(imgsz=1024, conf=.4, iou=.9)                        # SPEC 5
OURS = dict(imgsz=dict(ego=512, exo=1280), conf=.05, iou=.8) # Measured on the mini's val takes

class Proposer:
    "FastSAM on frames: proposals from images"
    def __init__(self,
        weights:str|Path=None, # A checkpoint (`load_fastsam`); ours by default
        imgsz=None,            # Longer side that the network sees, in pixels: one number, or one for each view
        conf:float=None,       # Lowest score
        iou:float=None,        # Box IoU from which two are the same (non-maximum suppression)
        max_det:int=300,       # Most proposals of a frame
        batch:int=1,           # Frames at a time
        device:str=None        # 'cpu', 'cuda', …; by default a GPU if there is one
    ):
        weights = Path(weights or WEIGHTS)
        self.net, digest = load_fastsam(weights), sha256(weights)
        default = OURS if WEIGHTS.is_file() and digest==sha256(WEIGHTS) else OFFICIAL
        imgsz, conf, iou = (default[k] if v is None else v for k,v in dict(imgsz=imgsz, conf=conf, iou=iou).items())
        sizes = imgsz if isinstance(imgsz, dict) else dict(ego=imgsz, exo=imgsz)
        if set(sizes)!={'ego', 'exo'} or not all(isinstance(s, int) and 32<=s<=8192 for s in sizes.values()): raise ArgumentError(f"imgsz must be a whole number from 32 to 8192, or one each for 'ego' and 'exo', not {imgsz!r}")
        for name, value in dict(conf=conf, iou=iou).items():
            if not 0<=value<=1: raise ArgumentError(f'{name} must be between 0 and 1, not {value!r}')
        if max_det<1 or batch<1: raise ArgumentError(f'max_det and batch must be at least 1, not {max_det} and {batch}')
        self.batch, self.device = batch, device or ('cuda' if _has_gpu() else 'cpu')
        self.settings = dict(proposer='fastsam', weights=digest, imgsz={k: sizes[k] for k in ('ego', 'exo')}, conf=conf, iou=iou, max_det=max_det)

def _has_gpu() -> bool:
    import torch
    return torch.cuda.is_available()

# %% [markdown]
`settings` is what decides the result: the checkpoint by its SHA-256, not by its name, and the numbers. It will be written into every file of the store. The batch and the device are not in it.

# %%
proposer = Proposer(device='cpu')
test_eq({k: v for k,v in proposer.settings.items() if k!='weights'}, dict(proposer='fastsam', **OURS, max_det=300))
test_eq(proposer.settings['weights'], sha256(WEIGHTS))
for wrong, message in ((dict(conf=1.5), 'conf must be'), (dict(iou=-1), 'iou must be'), (dict(imgsz=7), 'imgsz must be'), (dict(imgsz=dict(ego=640)), 'imgsz must be'), (dict(batch=0), 'at least 1')):
    test_fail(lambda: Proposer(**wrong), contains=message)

# %% [markdown]
### Masks only where they are

A frame's masks are mixtures of prototypes: with $P$ the prototypes on a grid of a quarter of the network's input and $c$ the coefficients of a proposal, its mask is where $U_y\,(c \cdot P)\,U_x^\top > 0$, inside its box. $U_y$ and $U_x$ stand for the bilinear enlargement to the frame, which is separable and linear. ultralytics enlarges every mixture to the whole frame, half a million pixels for an object of a few hundred, and cuts at the box afterwards. Rows of $U_y$ and $U_x$ outside the box are never needed, and neither is a dense mask, since runs are what is kept.

First the two matrices, then the pixels of one box, then the runs.

# %%
#| export
@lru_cache(16)
def enlargement(
    grid:tuple[int,int], # (rows, columns) of the prototypes
    size:tuple[int,int]  # (height, width) of the frame
):                       # Tensors [height, rows], [width, columns]
    "Bilinear enlargement of masks as two matrices, by ultralytics' rule: the input's padding is cut off on whole pixels"
    import torch
    from torch.nn.functional import interpolate
    def content(n, factor): return max(1, round(n*min(factor*g/s for g,s in zip(grid, size))))
    pad = (4*grid[0]-content(size[0], 4)) | (4*grid[1]-content(size[1], 4))
    factor, out = 4//gcd(4, pad | pad//2), []
    for g, n in zip(grid, size):
        line, inner = torch.eye(g)[None], content(n, factor)
        if factor>1: line = interpolate(line, scale_factor=factor, mode='linear')
        start = round((factor*g-inner)/2-.1)
        out.append(interpolate(line[..., start:start+inner], n, mode='linear')[0].T.contiguous())
    return out

# %%
#| export
def box_rles(
    prototypes,         # Tensor [K, rows, columns]
    coefficients,       # Tensor [N, K]
    boxes,              # Tensor [N, 4] xyxy in the frame, pixels
    size:tuple[int,int] # (height, width) of the frame
) -> list:              # N RLEs
    "Masks of proposals, enlarged inside their boxes only"
    (height, width), out = size, []
    rows, columns = enlargement(tuple(prototypes.shape[1:]), tuple(size))
    mixed = (coefficients @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])
    corners = boxes.ceil().int().numpy().clip(0, (width, height, width, height))
    for m, (x0, y0, x1, y1) in zip(mixed, corners):
        inside = ((rows[y0:y1] @ m) @ columns[x0:x1].T > 0).numpy()
        edges = np.diff(np.pad(inside.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        column, top = np.nonzero(edges==1)
        out.append(rle_from_runs(Runs(height, width, column+x0, top+y0, np.nonzero(edges==-1)[1]+y0)))
    return out

# %% [markdown]
FastSAM's predictor has one place where masks are made; it is replaced. All the rest (letterbox, network, non-maximum suppression) stays ultralytics'.

# %%
#| export
@lru_cache(1)
def _predictor():
    "FastSAM's predictor, with masks as RLEs"
    _ultralytics()
    from ultralytics.engine.results import Results
    from ultralytics.models.fastsam import FastSAMPredictor
    from ultralytics.utils.ops import scale_boxes
    class Predictor(FastSAMPredictor):
        def construct_result(self, found, image, original, path, prototypes):
            found, size = found.cpu().float(), original.shape[:2]
            boxes = scale_boxes(image.shape[2:], found[:,:4], size)
            result = Results(original, path=path, names=self.model.names, boxes=found[:,:6])
            result.rles = box_rles(prototypes.cpu().float(), found[:,6:], boxes, size)
            return result
    return Predictor

# %%
#| export
def _from_result(result) -> Proposals:
    "Proposals from the predictor's result for one image; masks without a pixel are left out"
    there = rle_areas(result.rles)>0
    return make_proposals(result.orig_shape, [r for r,t in zip(result.rles, there) if t], result.boxes.conf.numpy()[there])

def _propose(self:Proposer,
    images,         # uint8 [H, W, 3] RGB images of one view
    view:str='ego'  # 'ego' or 'exo': which size they are seen at
) -> list[Proposals]:
    "The proposals of images"
    for i in images:
        if i.ndim!=3 or i.shape[2]!=3 or i.dtype!=np.uint8: raise ArgumentError(f'an image must be uint8 [height, width, 3], not {i.dtype} {list(i.shape)}')
    s = self.settings
    options = dict(imgsz=s['imgsz'][view], conf=s['conf'], iou=s['iou'], max_det=s['max_det'], device=self.device, verbose=False, save=False)
    bgr = [np.ascontiguousarray(i[...,::-1]) for i in images]
    return [_from_result(r) for r in self.net.predict(bgr, predictor=_predictor(), **options)] if bgr else []
Proposer.__call__ = _propose

# %% [markdown]
Two frames of test takes, whose objects the network has never seen.

# %%
exo2ego, ego2exo = (read_pairs(pairs_path(root, 'test', d)) for d in ('exo2ego', 'ego2exo'))
take, ego_camera, frame = frames_of(exo2ego, 'dest').iloc[3]
exo_camera = 'cam01'
ego_image, exo_image = load_frame(root, take, ego_camera, frame), load_frame(root, take, exo_camera, frame)
[ego], [exo] = proposer([ego_image], 'ego'), proposer([exo_image], 'exo')

def show(ax, image, proposals, title):
    order = np.argsort(-proposals.areas)
    ax.imshow(draw_masks(image, [proposals.rles[i] for i in order], outline=1)); ax.set_title(title); ax.axis('off')
fig, axs = plt.subplots(1, 2, figsize=(11, 4.4), dpi=90, width_ratios=(1, 960/540))
show(axs[0], ego_image, ego, f'ego: {len(ego)} proposals'); show(axs[1], exo_image, exo, f'exo: {len(exo)} proposals')
plt.tight_layout()

# %%
for p, image in ((ego, ego_image), (exo, exo_image)):
    test_eq(p.size, image.shape[:2]); assert len(p)>5 and (p.areas>0).all() and (p.scores>=OURS['conf']).all() and (np.diff(p.scores)<=0).all()
test_eq(proposer([]), [])
test_fail(lambda: proposer([ego_image[...,0]]), contains='uint8 [height, width, 3]')
test_fail(lambda: proposer([ego_image/255]), contains='float64')

# %% [markdown]
**The same masks as ultralytics'.** The plain way asks FastSAM's own predictor for retina masks and encodes what it gives. Scores are equal; a pixel may differ where a mixture is zero but for the last bit.

# %%
net = load_fastsam()
def plain(image, view):
    "Proposals by ultralytics' own predictor"
    s = proposer.settings
    [r] = net.predict(np.ascontiguousarray(image[...,::-1]), retina_masks=True, imgsz=s['imgsz'][view], conf=s['conf'], iou=s['iou'], max_det=s['max_det'], device='cpu', verbose=False)
    masks = [] if r.masks is None else r.masks.data.numpy()
    return make_proposals(image.shape[:2], [rle_encode(m) for m in masks], r.boxes.conf.numpy())
for image, view, fast in ((ego_image, 'ego', ego), (exo_image, 'exo', exo), (ego_image[:501,:640], 'ego', None), (exo_image[:333], 'exo', None)):
    slow, fast = plain(image, view), fast or proposer([image], view)[0]
    test_eq(len(slow), len(fast)); test_close(slow.scores, fast.scores, eps=1e-5)
    differ = [rle_areas([a])[0]+rle_areas([b])[0]-2*rle_intersections([a], [b])[0,0] for a,b in zip(slow.rles, fast.rles)]
    assert sum(differ)<=1e-4*slow.areas.sum()+2, sum(differ)

# %%
times = np.median([[timeit.timeit(f, number=1) for f in (lambda: plain(exo_image, 'exo'), lambda: proposer([exo_image], 'exo'))] for _ in range(3)], 0)
print(f'an exo frame with {len(exo)} proposals: {times[0]/times[1]:.1f} times faster, the network included')
assert times[0]>times[1]

# %% [markdown]
**The channels.** A hook on the network's first layer sees what arrives there: red for a red image.

# %%
seen = {}
def note(module, args): seen['rgb'] = args[0].mean((0, 2, 3)).numpy()
first = next(m for m in proposer.net.predictor.model.model.modules() if isinstance(m, torch.nn.Conv2d))
handle = first.register_forward_pre_hook(note)
red = np.zeros((64, 64, 3), np.uint8); red[...,0] = 255
proposer([red]); handle.remove()
test_close(seen['rgb'], np.array([1, 0, 0]))

# %% [markdown]
**A batch** gives what its frames give one at a time; where the arithmetic differs in its last bits, a pixel on an edge may fall the other way.

# %%
def alike(a, b):
    test_eq(len(a), len(b)); test_close(a.scores, b.scores, eps=1e-3)
    if len(a): assert np.diag(rle_iou(a.rles, b.rles)).min()>.98
flipped = np.ascontiguousarray(ego_image[:,::-1])
for one, many in zip([ego, *proposer([flipped])], proposer([ego_image, flipped])): alike(one, many)

# %% [markdown]
**Nothing to see** is an answer, not an error.

# %%
blank = np.full((704, 704, 3), 128, np.uint8)
strict = Proposer(conf=.99, device='cpu')
test_eq([len(p) for p in strict([blank])], [0])

# %% [markdown]
The official checkpoints cannot ship. As a stand-in, a freshly initialised network of FastSAM-s's own architecture (YOLOv8-s-seg, one class), saved as ultralytics saves, goes through the same door and gets SPEC 5's settings.

# %%
from ultralytics.nn.tasks import SegmentationModel
torch.manual_seed(0)
stand_in = SegmentationModel('yolov8s-seg.yaml', nc=1, verbose=False).half()
torch.save({'epoch': -1, 'model': stand_in, 'train_args': {'task': 'segment'}, 'version': '8.0.0'}, scratch/'FastSAM-s.pt')
official = Proposer(scratch/'FastSAM-s.pt', device='cpu')
test_eq({k: official.settings[k] for k in ('imgsz', 'conf', 'iou')}, dict(imgsz=dict(ego=1024, exo=1024), conf=.4, iou=.9))
test_eq(official([blank[:320]])[0].size, (320, 704))

# %% [markdown]
A proposer reads its frames from a root. One that cannot be read becomes an error in its place, and the others go on.

# %%
#| export
def _of_frames(self:Proposer,
    root:str|Path, # A root
    take:str,      # Uid
    camera:str,    # Camera
    frames         # Indices of its frames
) -> Iterator:     # (frame, `Proposals`), or (frame, error) where the frame cannot be read
    "The proposals of a camera's frames"
    for i in range(0, len(frames), self.batch):
        images = {}
        for f in frames[i:i+self.batch]:
            try: images[f] = load_frame(root, take, camera, f)
            except EgoExoError as e: yield f, e
        yield from zip(images, self(list(images.values()), view_of(camera)))
Proposer.of_frames = _of_frames

# %%
got = dict(Proposer(batch=2, device='cpu').of_frames(root, take, ego_camera, [int(frame), 7]))
assert isinstance(got[7], FileError); alike(got[frame], ego)

# %% [markdown]
## The truth as proposals

How good could matching be if segmentation were perfect? `GroundTruthProposer` proposes the masks of all annotated objects, so the right answer is always among the candidates, exactly. Studies with it separate the two errors.

# %%
#| export
class GroundTruthProposer:
    "Proposes the annotated masks of all objects, for oracle studies"
    def __init__(self,
        root:str|Path # A root
    ): self.annotations, self.settings = Annotations(root), dict(proposer='ground truth')

    def of_frames(self,
        root:str|Path, # A root
        take:str,      # Uid
        camera:str,    # Camera
        frames         # Indices of its frames
    ) -> Iterator:     # (frame, `Proposals`), or (frame, error)
        "The annotated masks of a camera's frames, at the frames' size, with a score of 1"
        for f in frames:
            try:
                size, there = load_frame(root, take, camera, f).shape[:2], []
                for name in self.annotations[take].masks:
                    rle = self.annotations.rle(take, name, camera, f)
                    if rle is not None: there.append(rle_resize(rle, size))
                there = [r for r in there if rle_areas([r])[0]]
                yield f, make_proposals(size, there, np.ones(len(there)))
            except EgoExoError as e: yield f, e

# %%
truth = GroundTruthProposer(root)
[(f, ideal)] = truth.of_frames(root, take, ego_camera, [int(frame)])
expected = {o: m[ego_camera][str(frame)] for o,m in Annotations(root)[take].masks.items() if str(frame) in m.get(ego_camera, {})}
test_eq(f, frame); test_eq(ideal.rles, list(expected.values())); test_eq(ideal.scores, np.ones(len(expected)))
[(_, problem)] = truth.of_frames(root, take, ego_camera, [7]); assert isinstance(problem, FileError)
fig, ax = plt.subplots(figsize=(3.6, 3.8), dpi=90); show(ax, ego_image, ideal, f'{len(ideal)} annotated objects');

# %% [markdown]
## The store

`root/proposals/<name>/<take>/<camera>.parquet`, a row a proposal:

| column | |
|---|---|
| `take`, `camera`, `frame` | where it is |
| `height`, `width`, `counts` | the mask's RLE |
| `x`, `y`, `w`, `h` | its box |
| `score`, `area` | |

Any Parquet reader opens it. For ours, each frame is a **row group** of its own, and the file's metadata says which frames are there, how many proposals each has, and how big it is; so one frame costs one seek, frames without a proposal are on record, and a reader knows what is missing. The metadata also holds the proposer's settings. Pages carry checksums, so that a flipped bit is noticed.

# %%
#| export
COLUMNS = dict(take='string', camera='string', frame='int32', height='int32', width='int32', counts='string',
               x='float32', y='float32', w='float32', h='float32', score='float32', area='int32')

def _table(take:str, camera:str, frame:int, p:Proposals, schema):
    "Rows of one frame"
    import pyarrow as pa
    n, (height, width) = len(p), p.size
    columns = [[take]*n, [camera]*n, [frame]*n, [height]*n, [width]*n, [r['counts'] for r in p.rles], *p.boxes.T, p.scores, p.areas]
    return pa.table([pa.array(c, t) for c,t in zip(columns, schema.types)], schema=schema)

def write_proposals(
    path:str|Path, # The Parquet file
    take:str,      # Uid
    camera:str,    # Camera
    frames:dict,   # Frame → `Proposals`
    settings:dict  # Of the proposer
):
    "Write the proposals of a camera, atomically, a row group a frame"
    import pyarrow as pa, pyarrow.parquet as pq
    there = [(int(f), frames[f]) for f in sorted(frames)]
    notes = dict(settings=json.dumps(settings, sort_keys=True), frames=json.dumps([[f, len(p), *p.size] for f,p in there]))
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()], {f'egoexo_corr.{k}': v for k,v in notes.items()})
    with atomic_path(path) as tmp, pq.ParquetWriter(tmp, schema, compression='zstd', compression_level=9, use_dictionary=['take', 'camera'], write_statistics=['frame'], write_page_checksum=True) as out:
        for f, p in there:
            if len(p): out.write_table(_table(take, camera, f, p, schema))

# %% [markdown]
Reading starts with the footer. What is not a Parquet file of ours says so.

# %%
#| export
class _File(NamedTuple):
    "An open file of the store"
    parquet:object
    settings:dict # Of the proposer
    index:dict    # Frame → (row group or `None`, number of proposals, (height, width))
    path:Path

def _index(frames) -> dict:
    groups, index = 0, {}
    for f, n, height, width in frames:
        index[f] = (groups if n else None, n, (height, width)); groups += n>0
    return index

def _open(path:Path) -> _File:
    "Open a file of the store and read what it holds"
    import pyarrow as pa, pyarrow.parquet as pq
    try:
        parquet = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        notes = {k: json.loads(parquet.metadata.metadata[f'egoexo_corr.{k}'.encode()]) for k in ('settings', 'frames')}
        index = _index(notes['frames'])
    except FileNotFoundError: raise FileError('there is no such file; make it with egoexo_proposals', file=path) from None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as e:
        raise FileError(f'is damaged, or no file of proposals ({type(e).__name__}); delete it and make it again', file=path) from None
    return _File(parquet, notes['settings'], index, Path(path))

# %%
#| export
def _read(file:_File, frame:int) -> Proposals:
    "The proposals of one frame"
    import pyarrow as pa
    if frame not in file.index: raise DataError('has no proposals yet; make them with egoexo_proposals', file=file.path, frame=frame)
    group, n, size = file.index[frame]
    if group is None: return make_proposals(size, [])
    try: rows = file.parquet.read_row_group(group, columns=['counts', 'x', 'y', 'w', 'h', 'score', 'area'], use_threads=False)
    except (pa.ArrowException, OSError): raise FileError('is damaged; delete it and make it again', file=file.path, frame=frame) from None
    counts, *numbers = rows.columns
    x, y, w, h, scores, areas = (c.to_numpy() for c in numbers)
    return Proposals(size, [{'size': list(size), 'counts': c} for c in counts.to_pylist()], scores, np.stack([x, y, w, h], 1), areas.astype(np.int64))

# %%
#| export
class ProposalStore:
    "The proposals of a root, read frame by frame"
    def __init__(self,
        root:str|Path,       # A root
        name:str='fastsam',  # Which proposals
        keep:int=32          # Files that stay open
    ):
        self.folder = inside(Path(root)/'proposals', name)
        if not self.folder.is_dir(): raise FileError(f'there are no proposals named {name!r} in this root; make them with egoexo_proposals', file=self.folder)
        self._open = lru_cache(keep)(self._open)

    def _open(self, take, camera): return _open(inside(self.folder, take, f'{camera}.parquet'))
    def cameras(self) -> list[tuple[str,str]]: "(take, camera) of all files"; return sorted((p.parent.name, p.stem) for p in self.folder.glob('*/*.parquet'))
    def frames(self, take:str, camera:str) -> dict[int,int]: "Frame → number of proposals"; return {f: n for f,(_,n,_) in self._open(take, camera).index.items()}
    def settings(self, take:str, camera:str) -> dict: "What made a file"; return self._open(take, camera).settings

    def read(self,
        take:str,   # Uid
        camera:str, # Camera
        frame:int   # Frame
    ) -> Proposals:
        "The proposals of a frame, without reading the others"
        try: return _read(self._open(take, camera), int(frame))
        except EgoExoError as e: raise e.at(take=take, camera=camera, frame=int(frame))

# %% [markdown]
What goes in comes out: nothing at all, a single pixel, three hundred masks.

# %%
rng = np.random.default_rng(0)
crowd = make_proposals((40, 60), [square(*rng.integers(0, 30, 2), rng.integers(1, 9)) for _ in range(300)], rng.random(300))
pixel = make_proposals((40, 60), [square(59, 39, 1)], [.5])
cases = {0: crowd, 30: nothing, 60: pixel, 90: make_proposals((40, 60), [square(1, 2, 3)])}
toy = scratch/'toy'; path = toy/'proposals'/'fastsam'/'t0'/'cam01.parquet'
write_proposals(path, 't0', 'cam01', cases, {'proposer': 'test'})
store = ProposalStore(toy)

def test_same(a, b):
    test_eq((a.size, a.rles), (b.size, b.rles)); test_eq(a.areas, b.areas)
    test_eq(a.boxes, b.boxes); assert np.array_equal(a.scores, b.scores, equal_nan=True) and a.scores.dtype==b.scores.dtype==np.float32
for f, p in cases.items(): test_same(store.read('t0', 'cam01', f), p)
test_eq(store.frames('t0', 'cam01'), {0: 300, 30: 0, 60: 1, 90: 1}); test_eq(store.cameras(), [('t0', 'cam01')])
test_eq(store.settings('t0', 'cam01'), {'proposer': 'test'})

# %% [markdown]
The file is ordinary Parquet, and the same proposals give the same bytes.

# %%
table = pd.read_parquet(path)
test_eq(len(table), 302); test_eq(list(table.columns), list(COLUMNS)); test_eq(table.frame.value_counts().to_dict(), {0: 300, 60: 1, 90: 1})
digest = sha256(path); write_proposals(path, 't0', 'cam01', dict(reversed(cases.items())), {'proposer': 'test'}); test_eq(sha256(path), digest)
table[table.frame>0]

# %% [markdown]
What is missing or damaged is named, down to a flipped bit in the middle of a frame's rows.

# %%
test_fail(lambda: store.read('t0', 'cam01', 120), contains='take t0, camera cam01, frame 120, file')
test_fail(lambda: store.read('t0', 'cam01', 120), contains='has no proposals yet')
test_fail(lambda: store.read('t0', 'cam02', 0), contains='no such file')
test_fail(lambda: store.read('..', 'cam01', 0), contains='cannot be a file name')
test_fail(lambda: ProposalStore(toy, 'other'), contains="no proposals named 'other'")
whole = path.read_bytes()
flipped_bit = bytearray(whole); flipped_bit[len(whole)//4] ^= 16
for content in (b'', b'text', whole[:-20], whole[:100], bytes(flipped_bit)):
    path.write_bytes(content); test_fail(lambda: ProposalStore(toy).read('t0', 'cam01', 0), contains='is damaged')
path.write_bytes(whole)
pd.DataFrame(dict(a=[1])).to_parquet(toy/'proposals'/'fastsam'/'t0'/'cam03.parquet'); test_fail(lambda: store.read('t0', 'cam03', 0), contains='no file of proposals')
(toy/'proposals'/'fastsam'/'t0'/'cam03.parquet').unlink()

# %% [markdown]
All cases go through what is done with proposals later: neighbours, overlaps, boxes.

# %%
for p in cases.values():
    a = adjacency(p.rles); test_eq(a.shape, (len(p), len(p))); test_eq(a.any(), len(p)==300)
    test_eq(rle_iou(p.rles, [square(59, 39, 1)]).shape, (len(p), 1)); test_eq(rle_boxes(p.rles), p.boxes)

# %% [markdown]
## The long job

Candidates are needed in the frames that pairs point to: the destinations.

# %%
#| export
def proposal_frames(
    root:str|Path,      # A root with pair files
    direction:str=None, # 'exo2ego' or 'ego2exo'; both by default
    splits=SPLITS       # Which splits
) -> pd.DataFrame:      # take, camera, frame; sorted, each once
    "The frames in which candidates are sought: destinations of the pairs"
    ways = [Direction(direction)] if direction else list(Direction)
    parts = [frames_of(read_pairs(pairs_path(root, s, d), d), 'dest') for d in ways for s in splits]
    return pd.concat(parts).drop_duplicates().sort_values(['take', 'camera', 'frame'], ignore_index=True)

# %%
wanted = proposal_frames(root, 'exo2ego', ['test'])
test_eq(set(wanted.camera.map(view_of)), {'ego'})
test_eq(len(proposal_frames(root, splits=['test'])), len(wanted) + len(proposal_frames(root, 'ego2exo', ['test'])))

# %% [markdown]
`propose` fills a store. A camera of a take is its unit: done or not. What is there already is kept, so a stopped run goes on where it was, and new frames are added to those there. Before anything is computed, every file of that name is asked whether it was made with the same settings; a store is never a mixture, and nothing is overwritten. With `shard=(i, n)` it does the i-th of n parts, for n machines on one disk.

# %%
#| export
class ProposalRun:
    "What a run did: files, frames, proposals, problems"
    def __init__(self,
        folder:Path,       # The store
        strict:bool=False  # Raise the first problem
    ): self.folder, self.strict, self.files, self.frames, self.proposals, self.kept, self.problems = folder, strict, 0, 0, 0, 0, []

    def report(self, problem:EgoExoError):
        "Note a problem, or raise it if strict"
        if self.strict: raise problem
        self.problems.append(problem)

    def __str__(self):
        n = len(self.problems)
        lines = [f'{self.files} files in proposals/{self.folder.name}: {self.frames} frames were added with {self.proposals} proposals, {self.kept} were there, '
                 + ('no problems' if not n else f"{n} problem{'s'*(n>1)}:")]
        return '\n'.join(lines + [f'- {p}' for p in self.problems])
    __repr__ = __str__

def _differences(there:dict, wanted:dict) -> str:
    return ', '.join(f'{k} {there.get(k)} there and {wanted.get(k)} here' for k in sorted({*there, *wanted}) if there.get(k)!=wanted.get(k))

def _check_settings(folder:Path, settings:dict):
    "A store that other settings made is refused; damaged files are left for whoever needs them"
    for path in sorted(folder.glob('*/*.parquet')):
        try: there = _open(path).settings
        except FileError: continue
        if there!=settings: raise DataError(f'was made with other settings ({_differences(there, settings)}); choose another name, or delete the folder', file=path)

# %%
#| export
def _complete(path:Path, take:str, camera:str, wanted, proposer, root, run:ProposalRun, bar):
    "Bring one file of the store up to date"
    file = _open(path) if path.exists() else None
    frames = {f: _read(file, f) for f in file.index} if file else {}
    todo = [f for f in wanted if f not in frames]
    run.kept += len(wanted)-len(todo); bar.update(len(wanted)-len(todo))
    made = {}
    for f, p in proposer.of_frames(root, take, camera, todo):
        bar.update()
        if isinstance(p, EgoExoError): run.report(p.at(take=take, camera=camera, frame=f))
        else: made[f] = p
    if made: write_proposals(path, take, camera, {**frames, **made}, proposer.settings)
    run.files += bool(made or frames); run.frames += len(made); run.proposals += sum(map(len, made.values()))

# %%
#| export
def propose(
    root:str|Path,       # A root
    frames:pd.DataFrame, # take, camera, frame (`proposal_frames`)
    proposer,            # `Proposer` or `GroundTruthProposer`
    name:str='fastsam',  # Of the store: `root/proposals/<name>`
    shard=(0, 1),        # (i, n): do the i-th of n parts
    strict:bool=False    # Stop at the first problem
) -> ProposalRun:        # What was done and what went wrong; its text is the summary
    "Fill a store with the proposals of frames; goes on where an earlier run was stopped"
    from tqdm import tqdm
    if not 0<=shard[0]<shard[1]: raise ArgumentError(f'a shard is (i, n) with 0 ≤ i < n, not {tuple(shard)}')
    run = ProposalRun(inside(Path(root)/'proposals', name), strict)
    _check_settings(run.folder, proposer.settings)
    run.folder.mkdir(parents=True, exist_ok=True)
    cameras = [(k, sorted(map(int, g.frame))) for k,g in frames.groupby(['take', 'camera'])][shard[0]::shard[1]]
    with tqdm(total=sum(len(f) for _,f in cameras), unit='frame', disable=None) as bar:
        for (take, camera), wanted in cameras:
            path = inside(run.folder, take, f'{camera}.parquet')
            try: _complete(path, take, camera, wanted, proposer, root, run, bar)
            except EgoExoError as e: run.report(e.at(take=take, camera=camera))
    return run

# %% [markdown]
Four frames of three cameras (at a small size, to be quick), then again, then with more frames, then in two shards: each way ends with the same bytes.

# %%
def store_bytes(name): return {p.relative_to(root/'proposals'/name): sha256(p) for p in sorted((root/'proposals'/name).glob('*/*.parquet'))}
few = proposal_frames(root, splits=['val']); few = few[(few['take']==few['take'].iloc[0]) & (few.frame<120)]
quick = Proposer(imgsz=320, device='cpu')
run = propose(root, few, quick, 'whole'); print(run)
test_eq((run.files, run.frames, run.kept, run.problems), (few.camera.nunique(), len(few), 0, []))
whole = store_bytes('whole')
again = propose(root, few, quick, 'whole'); test_eq((again.frames, again.kept), (0, len(few))); test_eq(store_bytes('whole'), whole)
propose(root, few[few.frame<60], quick, 'grown'); propose(root, few, quick, 'grown'); test_eq(store_bytes('grown'), whole)
for i in (0, 1): propose(root, few, quick, 'shards', shard=(i, 2))
test_eq(store_bytes('shards'), whole)
test_fail(lambda: propose(root, few, quick, 'shards', shard=(2, 2)), contains='0 ≤ i < n')

# %% [markdown]
Other settings are refused before a frame is looked at; another checkpoint is another setting.

# %%
other = Proposer(imgsz=320, conf=.7, device='cpu')
test_fail(lambda: propose(root, few, other, 'whole'), contains=f"other settings (conf {OURS['conf']} there and 0.7 here); choose another name")
test_fail(lambda: propose(root, few, GroundTruthProposer(root), 'whole'), contains='proposer fastsam there and ground truth here')
test_eq(store_bytes('whole'), whole)

# %% [markdown]
A frame that is not a picture and a damaged file of the store are reported at the end; the rest is done, and what is damaged stays as it is. `strict` stops instead.

# %%
t, c, _ = few.iloc[0]
picture = frame_path(root, t, c, 30); good = picture.read_bytes(); picture.write_bytes(b'not a picture')
run = propose(root, few, quick, 'holes'); print(str(run).replace(str(root), 'root').replace(t, t[:8]))
test_eq((run.frames, len(run.problems)), (len(few)-1, 1))
test_fail(lambda: propose(root, few, quick, 'strict', strict=True), contains='is not a picture')
picture.write_bytes(good)
propose(root, few, quick, 'holes'); test_eq(store_bytes('holes'), whole)
damaged = root/'proposals'/'holes'/t/f'{c}.parquet'; damaged.write_bytes(b'PAR1'); 
run = propose(root, few, quick, 'holes'); test_eq((len(run.problems), run.kept), (1, int((few.camera!=c).sum())))
assert 'is damaged' in str(run); test_eq(damaged.read_bytes(), b'PAR1')

# %% [markdown]
A run that is **killed** at any moment leaves whole files only; started again, it ends with the same bytes. Here a run in another process kills itself in its fourth frame.

# %%
script = """
import os, signal, sys, torch
from egoexo_corr.proposals import *
torch.set_num_threads(%d)
root, take, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
few = proposal_frames(root, splits=['val']); few = few[(few['take']==take) & (few.frame<120)]
class Mortal(Proposer):
    count = 0
    def __call__(self, images, view='ego'):
        Mortal.count += 1
        if Mortal.count>n: os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(images, view)
print(propose(root, few, Mortal(imgsz=320, device='cpu'), 'killed'))
""" % torch.get_num_threads()
def mortal(n): return subprocess.run([sys.executable, '-c', script, root, t, str(n)], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
dead = mortal(6); test_eq(dead.returncode, -signal.SIGKILL); assert len(store_bytes('killed'))<len(whole)
alive = mortal(99); test_eq(alive.returncode, 0); test_eq(store_bytes('killed'), whole)

# %% [markdown]
## The reference's folders

`root/Masks_<SPLIT>_<EXO2EGO|EGO2EXO>/<take>/<camera>/<frame>_masks.npz` holds dense masks (`arr_0`, N×H×W uint8), `<frame>_boxes.npy` their boxes (SPEC 5). Exported, a store of ours can be read by the reference's code; imported, proposals that the reference's script made can be used here. They have no scores.

# %%
#| export
def reference_folder(
    root:str|Path, # A root
    split:str,     # 'train', 'val' or 'test'
    direction:str  # 'exo2ego' or 'ego2exo'
) -> Path:
    "Where the reference keeps the proposals of a split"
    if split not in SPLITS: raise ArgumentError(f"splits are {', '.join(SPLITS)}, not {split!r}")
    return Path(root)/f'Masks_{split.upper()}_{str(Direction(direction)).upper()}'

def _save_array(path:Path, save, array):
    with atomic_path(path) as tmp, open(tmp, 'wb') as f: save(f, array)

# %%
#| export
def export_reference(
    root:str|Path,       # A root
    split:str,           # 'train', 'val' or 'test'
    direction:str,       # 'exo2ego' or 'ego2exo'
    name:str='fastsam',  # Which proposals
    to:str|Path=None     # Another root to write to
) -> int:                # Frames written
    "Write proposals as the reference reads them"
    store, folder = ProposalStore(root, name), reference_folder(to or root, split, direction)
    frames = proposal_frames(root, direction, [split])
    for take, camera, frame in frames.itertuples(index=False):
        p, place = store.read(take, camera, frame), inside(folder, take, camera)
        masks = np.stack([rle_decode(r) for r in p.rles]).astype(np.uint8) if len(p) else np.zeros((0, *p.size), np.uint8)
        _save_array(place/f'{frame}_boxes.npy', np.save, p.boxes)
        _save_array(place/f'{frame}_masks.npz', np.savez_compressed, masks)
    return len(frames)

# %%
#| export
def _encode(masks:np.ndarray) -> list: # uint8 [N, H, W] → N RLEs
    from pycocotools import mask as coco
    packed = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0)))
    return [{'size': list(map(int, r['size'])), 'counts': r['counts'].decode('ascii')} for r in packed]

def read_reference(
    path:str|Path # `<frame>_masks.npz`; `<frame>_boxes.npy` lies beside it
) -> Proposals:
    "The proposals of a frame in the reference's format"
    path = Path(path); boxes_path = path.with_name(path.name.replace('_masks.npz', '_boxes.npy'))
    try:
        with np.load(path, allow_pickle=False) as f: masks = f['arr_0']
    except Exception as e: raise FileError(f'is damaged, or no file of masks ({type(e).__name__})', file=path) from None
    try: boxes = np.load(boxes_path, allow_pickle=False)
    except Exception as e: raise FileError(f'is missing or damaged ({type(e).__name__})', file=boxes_path) from None
    if masks.ndim!=3: raise FileError(f'holds an array of shape {list(masks.shape)}, not [masks, height, width]', file=path)
    if boxes.size!=4*len(masks) or boxes.dtype.kind not in 'fiu': raise FileError(f'holds {boxes.dtype} {list(boxes.shape)} for {len(masks)} masks', file=boxes_path)
    try: return make_proposals(masks.shape[1:], _encode((masks!=0).astype(np.uint8)) if len(masks) else [], boxes=boxes)
    except EgoExoError as e: raise e.at(file=path)

# %%
#| export
class ReferenceProposer:
    "Proposals that the reference's script left in a root"
    def __init__(self,
        root:str|Path, # The root with `Masks_*` folders
        split:str,     # 'train', 'val' or 'test'
        direction:str  # 'exo2ego' or 'ego2exo'
    ): self.folder, self.settings = reference_folder(root, split, direction), dict(proposer='reference')

    def of_frames(self, root, take:str, camera:str, frames) -> Iterator:
        "The proposals of a camera's frames"
        for f in frames:
            try: yield f, read_reference(inside(self.folder, take, camera)/f'{f}_masks.npz')
            except EgoExoError as e: yield f, e

# %%
#| export
def import_reference(
    root:str|Path,         # A root with `Masks_*` folders
    split:str,             # 'train', 'val' or 'test'
    direction:str,         # 'exo2ego' or 'ego2exo'
    name:str='reference',  # Of the store
    strict:bool=False      # Stop at the first problem
) -> ProposalRun:
    "Bring the reference's proposals of a split into a store"
    source = ReferenceProposer(root, split, direction)
    if not source.folder.is_dir(): raise FileError('there is no such folder', file=source.folder)
    there = [(p.parent.parent.name, p.parent.name, int(p.name[:-len('_masks.npz')])) for p in source.folder.glob('*/*/*_masks.npz') if p.name[:-len('_masks.npz')].isdecimal()]
    return propose(root, pd.DataFrame(there, columns=['take', 'camera', 'frame']), source, name, strict=strict)

# %% [markdown]
There and back: every mask bit for bit, every box. A frame without proposals comes back too.

# %%
toy_pairs = [[f'd//t0//{c}//cup//{k}//{f}' for c,k in (('aria', 'rgb'), ('aria', 'mask'), ('cam01', 'rgb'), ('cam01', 'mask'))] for f in cases]
write_json(toy/'dataset_jsons'/'test_egoexo_pairs.json', toy_pairs)
test_eq(export_reference(toy, 'test', 'ego2exo'), 4)
place = toy/'Masks_TEST_EGO2EXO'/'t0'/'cam01'
test_eq(sorted(p.name for p in place.iterdir()), sorted(f'{f}_{k}' for f in cases for k in ('boxes.npy', 'masks.npz')))
dense = np.load(place/'0_masks.npz', allow_pickle=False)['arr_0']; test_eq((dense.shape, dense.dtype), ((300, 40, 60), np.uint8))
test_eq(np.load(place/'30_masks.npz')['arr_0'].shape, (0, 40, 60)); test_eq(np.load(place/'0_boxes.npy').dtype, np.float32)
print(import_reference(toy, 'test', 'ego2exo'))
back = ProposalStore(toy, 'reference')
for f, p in cases.items():
    q = back.read('t0', 'cam01', f); test_eq((q.size, q.rles), (p.size, p.rles)); test_eq(q.boxes, p.boxes); assert np.isnan(q.scores).all()

# %%
for content, message in ((b'x', 'no file of masks'), (None, 'shape [40, 60]')):
    if content: (place/'0_masks.npz').write_bytes(content)
    else: np.savez_compressed(place/'0_masks.npz', dense[0])
    test_fail(lambda: read_reference(place/'0_masks.npz'), contains=message)
np.savez_compressed(place/'0_masks.npz', np.array([{}], object)); test_fail(lambda: read_reference(place/'0_masks.npz'), contains='no file of masks')
np.savez_compressed(place/'0_masks.npz', dense[:5]); test_fail(lambda: read_reference(place/'0_masks.npz'), contains='for 5 masks')
(place/'0_boxes.npy').unlink(); test_fail(lambda: read_reference(place/'0_masks.npz'), contains='is missing or damaged')
run = import_reference(toy, 'test', 'ego2exo', 'again'); test_eq((run.frames, len(run.problems)), (3, 1))
test_fail(lambda: import_reference(toy, 'val', 'ego2exo'), contains='no such folder')

# %% [markdown]
How much is gained? A hundred masks of an ego frame, as `np.savez` writes them, as `np.savez_compressed` does (what `export_reference` uses; readers need not care), and as a row group of a file with three times the mini's frames, for there to be something to seek in.

# %%
hundred = make_proposals((704, 704), (ego.rles+ideal.rles)*20, None)
hundred = make_proposals((704, 704), hundred.rles[:100], np.linspace(1, 0, 100))
write_proposals(toy/'proposals'/'size'/'t0'/'aria.parquet', 't0', 'aria', {30*i: hundred for i in range(36)}, {})
dense = np.stack([rle_decode(r) for r in hundred.rles]).astype(np.uint8)
for save, n in ((np.savez, 'plain'), (np.savez_compressed, 'small')): save(scratch/f'{n}.npz', dense)
sized = ProposalStore(toy, 'size')
def load(n):
    with np.load(scratch/f'{n}.npz', allow_pickle=False) as f: return f['arr_0']
test_eq(load('small'), np.stack([rle_decode(r) for r in sized.read('t0', 'aria', 510).rles]))
ways = dict(npz=lambda: load('plain'), compressed=lambda: load('small'), store=lambda: sized.read('t0', 'aria', 510), first=lambda: ProposalStore(toy, 'size').read('t0', 'aria', 510))
times = dict(zip(ways, np.median([[timeit.timeit(f, number=1) for f in ways.values()] for _ in range(15)], 0)))
each = (toy/'proposals'/'size'/'t0'/'aria.parquet').stat().st_size/36
for n, file in (('npz', 'plain'), ('compressed', 'small')):
    print(f"{n:10}: the store is {(scratch/f'{file}.npz').stat().st_size/each:.1f} times smaller and {times[n]/times['store']:.0f} times faster to read ({times[n]/times['first']:.0f} if it must be opened first)")
assert (scratch/'plain.npz').stat().st_size>10*each and (scratch/'small.npz').stat().st_size>each
assert times['npz']>10*times['store'] and times['compressed']>10*times['store']

# %% [markdown]
## COCO

For viewers and other people's evaluators: one JSON with images, and a result a proposal. COCO's boxes count pixels (`w = x_max − x_min + 1`), and its areas are the masks'.

# %%
#| export
def export_coco(
    root:str|Path,      # A root
    path:str|Path,      # The JSON to write
    name:str='fastsam'  # Which proposals
) -> int:               # Proposals written
    "Write a store as COCO JSON: masks as RLE, `score` kept, one category"
    from pycocotools import mask as coco
    store, images, notes = ProposalStore(root, name), [], []
    for take, camera in store.cameras():
        for frame in store.frames(take, camera):
            p = store.read(take, camera, frame)
            images.append(dict(id=len(images)+1, file_name=f'{take}/{camera}/{frame}.jpg', height=p.size[0], width=p.size[1]))
            for r, score, area in zip(p.rles, p.scores, p.areas):
                notes.append(dict(id=len(notes)+1, image_id=len(images), category_id=1, segmentation=r, area=int(area), bbox=coco.toBbox(r).tolist(), iscrowd=0,
                                  score=None if np.isnan(score) else round(float(score), 5)))
    write_json(path, dict(images=images, annotations=notes, categories=[dict(id=1, name='object')]))
    return len(notes)

# %%
import contextlib, io
from pycocotools.coco import COCO
test_eq(export_coco(toy, scratch/'coco.json'), 302)
with contextlib.redirect_stdout(io.StringIO()): api = COCO(scratch/'coco.json')
test_eq([len(api.getAnnIds(i)) for i in sorted(api.imgs)], [300, 0, 1, 1])
note = api.loadAnns(api.getAnnIds(3))[0]
test_eq(api.annToMask(note), rle_decode(pixel.rles[0])); test_eq((note['bbox'], note['area'], note['score']), ([59, 39, 1, 1], 1, .5))
test_eq(api.imgs[1]['file_name'], 't0/cam01/0.jpg'); assert api.loadAnns(api.getAnnIds(4))[0]['score'] is None

# %% [markdown]
## How good are they?

The ceiling on matching is the **oracle**: for each visible pair, the best IoU that any candidate reaches. Its mean is what a perfect matcher would score. **Recall** at 0.5 or 0.75 is the share of pairs with a candidate that good.

# %%
#| export
def best_iou(
    root:str|Path,       # A root
    pairs:pd.DataFrame,  # Pairs (`read_pairs`)
    store                # `ProposalStore`, or whatever else has `read(take, camera, frame)`
) -> pd.DataFrame:       # A row a visible pair: the pair's columns, side (√area of the mask in the frame, pixels), iou, candidate, candidates
    "The best candidate of each pair that is visible in the destination"
    annotations, rows = Annotations(root), {}
    for (take, camera, frame), here in pairs.groupby(['take', 'dest_cam', 'frame']):
        p = store.read(take, camera, frame)
        for name in here.object.unique():
            rle = annotations.rle(take, name, camera, frame)
            rle = rle_resize(rle, p.size) if rle else None
            if rle is None or not (area := rle_areas([rle])[0]): continue
            iou = rle_iou(p.rles, [rle])[:,0]
            rows[take, name, camera, frame] = dict(side=area**.5, iou=iou.max(initial=0), candidate=int(iou.argmax()) if len(iou) else -1, candidates=len(p))
    keys = list(zip(pairs['take'], pairs.object, pairs.dest_cam, pairs.frame))
    seen = [k in rows for k in keys]
    return pd.concat([pairs[seen].reset_index(drop=True), pd.DataFrame([rows[k] for k in keys if k in rows], columns=['side', 'iou', 'candidate', 'candidates'])], axis=1)

# %%
#| export
SIDES = (0, 16, 32, 64, 128, np.inf) # √area, pixels

def recall(
    best:pd.DataFrame # What `best_iou` gives
) -> pd.DataFrame:    # By size and in all: pairs, recall at 0.5 and 0.75, oracle IoU
    "How much of what is sought has a good candidate"
    labels = [f'{a} to {b}' if b<np.inf else f'over {a}' for a,b in zip(SIDES, SIDES[1:])]
    size = pd.cut(best.side, SIDES, labels=labels, right=False)
    table = lambda g: pd.Series({'pairs': len(g), 'recall at 0.5': (g.iou>=.5).mean(), 'recall at 0.75': (g.iou>=.75).mean(), 'oracle IoU': g.iou.mean()})
    rows = {label: table(best[size==label]) for label in labels if (size==label).any()}
    return pd.DataFrame({**rows, 'all': table(best)}).T.astype({'pairs': int}).rename_axis('side in pixels')

# %% [markdown]
Tested on the truth, for which the oracle is 1, and on nothing, for which it is 0.

# %%
some = exo2ego[exo2ego['take']==take]
class Fixed:
    "A store that answers from a dictionary"
    def __init__(self, answers): self.answers = answers
    def read(self, *key): return self.answers[key]
keys = list(frames_of(some, 'dest').itertuples(index=False, name=None))
perfect = Fixed({k: p for k in keys for _,p in truth.of_frames(root, *k[:2], [k[2]])})
empty = Fixed({k: make_proposals((704, 704), []) for k in keys})
ideal_best, no_best = best_iou(root, some, perfect), best_iou(root, some, empty)
test_eq(set(ideal_best.iou), {1.}); test_eq(set(no_best.iou), {0.}); test_eq(len(ideal_best), len(no_best)); test_eq(set(no_best.candidate), {-1})
assert 0<len(ideal_best)<len(some)
test_eq(recall(ideal_best).loc['all', ['recall at 0.5', 'oracle IoU']].tolist(), [1, 1]); test_eq(recall(no_best)['pairs'].sum(), 2*len(no_best))

# %% [markdown]
Now the network, on every fourth destination frame of the **test** takes: takes, rooms and objects that had no part in training it nor in choosing its settings. (The whole sets follow; this part is small, so that it runs with the tests.)

# %%
sample = proposal_frames(root, splits=['test']); sample = sample[sample.frame%120==0]
print(propose(root, sample, proposer, 'sample'))
quality = {}
for name, pairs in dict(exo2ego=exo2ego, ego2exo=ego2exo).items(): quality[name] = best_iou(root, pairs[pairs.frame%120==0], ProposalStore(root, 'sample'))
for name, best in quality.items(): print(f'{name}: oracle IoU {best.iou.mean():.2f} on {len(best)} visible pairs')
assert quality['exo2ego'].iou.mean()>.77 and quality['ego2exo'].iou.mean()>.65

# %% [markdown]
All of the mini: three splits, both directions, timed. (Cells marked `eval: false` take minutes; their outputs are of the run that was committed.)

# %%
#| eval: false
prepare('../data/mini', root); write_pairs(root)
started, cpu = time.perf_counter(), time.process_time()
run = propose(root, proposal_frames(root), proposer)
wall, cpu = time.perf_counter()-started, time.process_time()-cpu
print(f'{run}\n{wall/60:.1f} minutes on {torch.get_num_threads()} threads ({cpu/60:.1f} of processor time), {wall/run.frames:.2f} s a frame')
size = sum(p.stat().st_size for p in (root/'proposals'/'fastsam').glob('*/*.parquet'))
print(f'{size/1e6:.1f} MB, {size/run.proposals:.0f} bytes a proposal')

# %%
#| eval: false
store = ProposalStore(root)
best = {(s, str(d)): best_iou(root, read_pairs(pairs_path(root, s, d)), store) for s in SPLITS for d in Direction}
table = pd.concat({k: recall(b).loc[['all']] for k,b in best.items()}, names=['split', 'direction']).droplevel(2).round(3)
table['candidates a frame'] = [b.drop_duplicates(['take', 'dest_cam', 'frame']).candidates.mean().round(1) for b in best.values()]
table

# %% [markdown]
By size, on test: ego frames first, exo frames next.

# %%
#| eval: false
display(recall(best['test', 'exo2ego']).round(3), recall(best['test', 'ego2exo']).round(3))

# %%
#| eval: false
fig, axs = plt.subplots(1, 2, figsize=(10, 3.2), dpi=90)
for d, color in zip(('exo2ego', 'ego2exo'), PALETTE[[5,4]]/255):
    b = best['test', d]
    axs[0].plot(np.sort(b.iou), np.linspace(0, 1, len(b)), c=color, label=f'{d} (in {Direction(d).dest} frames)')
    axs[1].scatter(b.side, b.iou, s=4, c=[color], alpha=.4, label=d)
axs[0].set(xlabel='IoU of the best candidate', ylabel='share of pairs at most this good', title='test'); axs[0].legend(frameon=False)
axs[1].set(xlabel='√area of the object, pixels', ylabel='IoU of the best candidate', xscale='log', title='test')
plt.tight_layout()

# %% [markdown]
### Hits and misses

The object sought in outline (orange), its best candidate filled (blue). First row: pairs from the better half; second row: the worst of all. A miss is mostly a thing of which a hand or another thing leaves a sliver, a flat or thin one, or one that lies against something of its own colour.

# %%
#| export
def crop_around(
    image:np.ndarray, # [H, W, 3]
    box,              # xywh
    margin:int=40     # Pixels on each side
) -> tuple:           # The crop; (y, x) of its corner
    "A window around a box"
    x, y, w, h = map(int, box)
    y0, x0 = max(0, y-margin), max(0, x-margin)
    return image[y0:y+h+1+margin, x0:x+w+1+margin], (y0, x0)

# %%
test_eq(crop_around(np.zeros((100, 200, 3)), (10, 60, 20, 30))[0].shape, (80, 71, 3)); test_eq(crop_around(ego_image, (300, 400, 0, 0))[1], (360, 260))

def show_pair(ax, row, store):
    where = row.take, row.dest_cam, row.frame
    p, image = store.read(*where), load_frame(root, *where)
    rle = rle_resize(Annotations(root).rle(row.take, row.object, *where[1:]), p.size)
    if row.candidate>=0: image = draw_masks(image, [p.rles[row.candidate]], colors=[PALETTE[4]], outline=0)
    image = draw_masks(image, [rle], colors=[PALETTE[0]], alpha=0, outline=1)
    ax.imshow(crop_around(image, rle_boxes([rle])[0])[0]); ax.set_title(f'{row.object[:18]}, {row.iou:.2f}', fontsize=8); ax.axis('off')

def show_extremes(best, store, n=6):
    each = best.sort_values('iou').drop_duplicates(['take', 'object'])
    typical = best[best.iou>=best.iou.median()].drop_duplicates(['take', 'object']).sample(n, random_state=0)
    fig, axs = plt.subplots(2, n, figsize=(1.75*n, 3.9), dpi=90)
    for line, rows in zip(axs, (typical, each.head(n))):
        for ax, row in zip(line, rows.itertuples(index=False)): show_pair(ax, row, store)
    plt.tight_layout()
show_extremes(quality['exo2ego'], ProposalStore(root, 'sample'))

# %%
show_extremes(quality['ego2exo'], ProposalStore(root, 'sample'))

# %% [markdown]
### Confidence and size

Two settings matter: the lowest score that counts, and the size at which the network sees the frame. They were chosen on the **val** takes.

One run answers for all confidences: non-maximum suppression is greedy from the best score down, so a low-scored proposal never suppresses a better one, and asking with a higher confidence is the same as dropping what scored lower.

# %%
loose, tight = Proposer(conf=.05, imgsz=320, device='cpu'), Proposer(conf=.3, imgsz=320, device='cpu')
[a], [b] = loose([ego_image]), tight([ego_image])
keep = a.scores>=.3
test_eq([r for r,k in zip(a.rles, keep) if k], b.rles); assert 0<keep.sum()<len(a)

# %%
#| eval: false
CONFS, CHOICES = (.05, .1, .15, .2, .3, .4), dict(ego=(320, 512, 704, 960), exo=(640, 960, 1280, 1600))
rows, frames_val = [], proposal_frames(root, splits=['val'])
for view, sizes in CHOICES.items():
    pairs = read_pairs(pairs_path(root, 'val', next(d for d in Direction if d.dest==view))); pairs = pairs[pairs.frame%90==0]
    keys = list(frames_of(pairs, 'dest').itertuples(index=False, name=None))
    for size in sizes:
        ask, started = Proposer(conf=CONFS[0], imgsz=size, device='cpu'), time.process_time()
        found = {k: p for k in keys for _,p in ask.of_frames(root, *k[:2], [k[2]])}
        seconds = (time.process_time()-started)/len(keys)
        for conf in CONFS:
            kept = Fixed({k: make_proposals(p.size, [r for r,s in zip(p.rles, p.scores) if s>=conf]) for k,p in found.items()})
            b = best_iou(root, pairs, kept)
            rows.append(dict(view=view, size=size, conf=conf, oracle=b.iou.mean(), candidates=np.mean([len(p) for p in kept.answers.values()]), seconds=seconds))
study = pd.DataFrame(rows)
fig, axs = plt.subplots(1, 2, figsize=(10, 3.4), dpi=90, sharey=True)
for ax, (view, part) in zip(axs, study.groupby('view', sort=False)):
    for color, (size, line) in zip(PALETTE[[1,0,5,4]]/255, part.groupby('size')): ax.plot(line.candidates, line.oracle, 'o-', ms=4, c=color, label=f'{size} px, {line.seconds.iloc[0]:.2f} s a frame')
    ax.set(title=f'{view} frames, val', xlabel='candidates a frame (confidence falls to the right)', ylabel='oracle IoU', xscale='log'); ax.legend(frameon=False, fontsize=8)
plt.tight_layout()

# %% [markdown]
More candidates raise the ceiling and make the choice harder. `OURS` takes the highest ceiling whose candidates still count a hundred or two a frame, and which the processor can afford (times are processor time, masks included).

# %% [markdown]
## The recipe

The checkpoint that ships was trained from scratch on 800 rendered frames of the simulator (`mini.training_frames`), whose objects, textures and rooms are of the *train* split; every instance is labelled, annotated or not: things, furniture, hands and arms. No frame of the mini's takes, of any split, was used.

**Data.** Objects fill a small part of an exo frame, and a whole frame at full size is dear on a CPU. So the network learns from **tiles** of 320×320: an ego frame reduced to anything between 0.45 and 1 of its size, an exo frame at 0.8 to 1.8, each tile placed around some instance; an ego frame also as a whole. A second cut of the same frames replaces every third exo tile by one from anywhere, so that floors and walls are learnt to be nothing. Frames first go through the video codec at a random quality, since the mini's frames do.

# %%
#| export
def compress(
    image:np.ndarray, # uint8 [H, W, 3] RGB, even sides
    crf:int           # H.264's constant quality
) -> np.ndarray:      # The same, as a video would show it
    "An image after H.264"
    import av, io
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format='mp4') as video:
        stream = video.add_stream('libx264', rate=30, options=dict(crf=str(crf), preset='veryfast', threads='1'))
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], 'yuv420p'
        video.mux(stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24'))); video.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as video: return next(video.decode(video=0)).to_ndarray(format='rgb24')

def outline(
    mask:np.ndarray    # uint8 [H, W]
) -> np.ndarray|None:  # [K, 2] x, y; `None` if nothing is left
    "One polygon around all parts of a mask, as YOLO's labels want it"
    import cv2
    _ultralytics()
    from ultralytics.data.converter import merge_multi_segment
    parts = [c.reshape(-1, 2) for c in cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0] if len(c)>=3 and cv2.contourArea(c)>=4]
    if len(parts)<2: return parts[0] if parts else None
    return np.concatenate(merge_multi_segment([p.reshape(-1).tolist() for p in parts]), 0)

# %%
test_close(compress(ego_image, 20).astype(float), ego_image, eps=80); test_eq(compress(ego_image, 30).shape, ego_image.shape)
m = np.zeros((50, 60), np.uint8); m[5:20, 5:20] = 1; m[30:45, 30:50] = 1
drawn = np.zeros_like(m); cv2.fillPoly(drawn, [outline(m).astype(np.int32)], 1)
assert (drawn!=m).mean()<.02; test_eq(outline(np.zeros_like(m)), None)

# %%
#| export
TILE = 320
SCALES = dict(ego=(.46, 1.), exo=(.8, 1.8))

def cut_tile(
    image:np.ndarray, # uint8 [H, W, 3]
    masks:list,       # N arrays, uint8 [H, W]
    rng,              # NumPy generator
    scale:float,      # Of the tile to the frame
    anywhere:bool=False # Not around an instance
) -> tuple:           # uint8 [TILE, TILE, 3]; polygons [K, 2], 0 to 1
    "A part of a frame, around one of its instances"
    import cv2
    (h, w), side = image.shape[:2], TILE/scale
    moments = cv2.moments(masks[rng.integers(len(masks))])
    centre = (rng.uniform(0, w), rng.uniform(0, h)) if anywhere else (moments['m10']/moments['m00'], moments['m01']/moments['m00'])
    x, y = (int(np.clip(c-side*rng.uniform(.25, .75), 0, max(0, n-side))) for c,n in zip(centre, (w, h)))
    part, how = np.s_[y:y+round(side), x:x+round(side)], cv2.INTER_AREA if scale<1 else cv2.INTER_LINEAR
    def fit(a): return cv2.resize(a[part], (TILE, TILE), interpolation=how)
    small = [(fit(m.astype(np.float32))>.5).astype(np.uint8) for m in masks if m[part].any()]
    polygons = [outline(m) for m in small if m.sum()>=24]
    return fit(image), [(p+.5)/TILE for p in polygons if p is not None]

# %%
scene, labels = cut_tile(ego_image, [rle_decode(r).astype(np.uint8) for r in ideal.rles], np.random.default_rng(0), TILE/704)
test_eq(scene.shape, (TILE, TILE, 3)); test_eq(len(labels), len(ideal))
assert all(0<=p.min() and p.max()<=1 for p in labels)
test_close(scene.astype(float), cv2.resize(ego_image, (TILE, TILE), interpolation=cv2.INTER_AREA).astype(float), eps=1)

# %%
#| export
def write_tiles(
    frames,        # (image, {instance: RLE}, camera), as `mini.training_frames` yields them
    out:str|Path,  # Folder to make: `images/`, `labels/`, `data.yaml`, as YOLO wants it
    seed:int=7,    # Of the cuts
    anywhere:bool=False # The third tile of an exo frame from anywhere
) -> int:          # Tiles written
    "Cut frames into training tiles: two of an ego frame, three of an exo frame"
    import cv2
    out, n = Path(out), 0
    for i, (image, masks, camera) in enumerate(frames):
        rng, view = np.random.default_rng(seed+i), view_of(camera)
        dense, image = [rle_decode(r).astype(np.uint8) for r in masks.values()], compress(image, int(rng.integers(24, 31)))
        for t in range(2 if view=='ego' else 3) if dense else ():
            scale = TILE/len(image) if view=='ego' and not t else np.exp(rng.uniform(*np.log(SCALES[view])))
            tile, polygons = cut_tile(image, dense, rng, scale, anywhere and t==2)
            if not polygons and t<2: continue
            text = '\n'.join('0 ' + ' '.join(f'{v:.4f}' for v in p.clip(0, 1).reshape(-1)) for p in polygons)
            for folder in ('train', 'val') if n<8 else ('train',):
                for kind in ('images', 'labels'): (out/kind/folder).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(out/'images'/folder/f'{i:06d}_{t}.jpg'), tile[...,::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
                (out/'labels'/folder/f'{i:06d}_{t}.txt').write_text(text)
            n += 1
    (out/'data.yaml').write_text(f'path: {out.resolve()}\ntrain: images/train\nval: images/val\nnames: {{0: object}}\n')
    return n

# %% [markdown]
The simulator needs the extra `sim`. So that this notebook's tests need no more than the library, the tiles shown here are cut from a few val frames of the mini with their *annotated* objects; the recipe is otherwise the same. (What is trained on them here is thrown away.)

# %%
def annotated_frames(n):
    "Some frames in the form of `mini.training_frames`"
    for take, camera, frame in proposal_frames(root, splits=['val']).sample(n, random_state=1).itertuples(index=False):
        image = load_frame(root, take, camera, frame)
        masks = {o: rle_resize(m[camera][str(frame)], image.shape[:2]) for o,m in Annotations(root)[take].masks.items() if str(frame) in m.get(camera, {})}
        if masks: yield image, masks, camera
tiles = scratch/'tiles'
n = write_tiles(annotated_frames(6), tiles)
names = sorted(p.stem for p in (tiles/'images'/'train').iterdir())
test_eq(len(names), n); test_eq(names, sorted(p.stem for p in (tiles/'labels'/'train').iterdir()))
fig, axs = plt.subplots(1, 5, figsize=(11, 2.4), dpi=90)
for ax, name in zip(axs, names[::max(1, len(names)//5)]):
    ax.imshow(cv2.imread(str(tiles/'images'/'train'/f'{name}.jpg'))[...,::-1]); ax.axis('off')
    for line in (tiles/'labels'/'train'/f'{name}.txt').read_text().splitlines():
        polygon = np.array(line.split()[1:], float).reshape(-1, 2)*TILE-.5; ax.plot(*polygon[[*range(len(polygon)), 0]].T, c='tab:orange', lw=1)
plt.tight_layout()

# %% [markdown]
**Network.** YOLOv8's design with a few changes for a small processor: fewer channels where the map is large, 24 prototypes from 32 channels, and boxes as plain distances (`reg_max` 1) instead of distributions over 16 bins, which makes the box head four times slimmer.

# %%
#| export
NETWORK = """
nc: 1
end2end: False
reg_max: 1
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, C2f, [24, True]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [-1, 2, C2f, [48, True]]
  - [-1, 1, Conv, [80, 3, 2]]
  - [-1, 2, C2f, [80, True]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, C2f, [128, True]]
  - [-1, 1, SPPF, [128, 5]]
head:
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 6], 1, Concat, [1]]
  - [-1, 1, C2f, [80]]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, 4], 1, Concat, [1]]
  - [-1, 1, C2f, [48]]
  - [-1, 1, Conv, [48, 3, 2]]
  - [[-1, 12], 1, Concat, [1]]
  - [-1, 1, C2f, [80]]
  - [-1, 1, Conv, [80, 3, 2]]
  - [[-1, 9], 1, Concat, [1]]
  - [-1, 1, C2f, [128]]
  - [[15, 18, 21], 1, Segment, [nc, 24, 32]]
"""

# %%
net_small = SegmentationModel(yaml.safe_load(NETWORK), nc=1, verbose=False)
count = sum(p.numel() for p in net_small.parameters())
print(f'{count/1e6:.2f} million parameters')
ours = load_fastsam()
test_eq({k: tuple(v.shape) for k,v in net_small.state_dict().items()}, {k: tuple(v.shape) for k,v in ours.model.state_dict().items()})

# %% [markdown]
**Training.** ultralytics' own trainer. From scratch and in few steps, so: AdamW at 0.003 falling as a cosine, an update every batch, no mosaics (tiles are mixtures already), flips, scale and colours at random.

What is kept is the moving average of the weights in half precision, without the optimiser and without the trainer's notes on whose machine it ran; and the losses, for the curves below.

# %%
#| export
RECIPE = dict(imgsz=TILE, batch=8, nbs=8, amp=False, pretrained=False, single_cls=True, optimizer='AdamW', lr0=.003, lrf=.02, cos_lr=True,
              warmup_epochs=.4, warmup_bias_lr=0., weight_decay=.01, mosaic=0., scale=.25, translate=.1, fliplr=.5, hsv_h=.02, hsv_s=.4, hsv_v=.3,
              erasing=0., close_mosaic=0, overlap_mask=True, mask_ratio=4, val=False, plots=False, workers=0, cache='ram', deterministic=False)

def train_fastsam(
    tiles:str|Path,     # What `write_tiles` made
    out:str|Path,       # The checkpoint to write
    epochs:int=8,       # Times through the tiles
    start:str|Path=None, # A checkpoint to go on from; from scratch by default
    seed:int=0,         # Of the initial weights and the order
    device:str='cpu',   # 'cpu', 'cuda', …
    **options           # Changes to `RECIPE`
) -> dict:              # Losses a step: box, seg, cls, l1
    "Train the small FastSAM"
    import tempfile, torch
    out, steps = Path(out), []
    threads = torch.get_num_threads()
    def note(trainer): steps.append([float(trainer.loss_items[k]) for k in ('box_loss', 'seg_loss', 'cls_loss', 'l1_loss')])
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder)/'fastsam-mini-seg.yaml'; network.write_text(NETWORK)
        model = _ultralytics().YOLO(network, task='segment')
        if start: model.model, model.ckpt = load_fastsam(start).model, {'model': True}
        model.add_callback('on_train_batch_end', note)
        model.add_callback('on_train_start', lambda _: torch.set_num_threads(threads))
        model.train(data=Path(tiles)/'data.yaml', epochs=epochs, seed=seed, device=device, project=folder, name='run', verbose=False, **{**RECIPE, **options})
        history = dict(zip(('box', 'seg', 'cls', 'l1'), np.round(steps, 4).T.tolist()))
        save_fastsam(model.trainer.ema.ema, out, history)
    return history

# %%
#| export
def save_fastsam(
    model,          # A segmentation network of ultralytics
    out:str|Path,   # The checkpoint to write
    history:dict    # Kept with it
):
    "Write a checkpoint in ultralytics' form: half precision, nothing but layers and plain values"
    import copy, torch
    model = copy.deepcopy(model).cpu().half().eval()
    for p in model.parameters(): p.requires_grad = False
    model.args, model.names, model.task, model.criterion = {'task': 'segment'}, {0: 'object'}, 'segment', None
    model.yaml = {k: v for k,v in model.yaml.items() if k!='yaml_file'}
    for name in ('pt_path', 'hyp', 'class_weights'): model.__dict__.pop(name, None)
    with atomic_path(out) as tmp:
        with open(tmp, 'wb') as f: torch.save({'model': model, 'train_args': {'task': 'segment', 'imgsz': TILE, 'single_cls': True}, 'history': history}, f)

# %% [markdown]
The switch: with `FULL` the whole recipe runs (rendering, eight epochs of the first cut, three of the second at a lower rate), about an hour on two cores; without, a minute's version on the tiles above, which shows that every step works and that the loss falls. It has to: it sees a handful of tiles again and again.

# %%
FULL = False
if FULL:
    from egoexo_corr.mini import training_frames
    frames = [f for seed in range(5000, 5050) for f in training_frames(16, seed)]
    write_tiles(frames, scratch/'first'); train_fastsam(scratch/'first', scratch/'first.pt')
    write_tiles(frames, scratch/'second', seed=1007, anywhere=True); train_fastsam(scratch/'second', scratch/'full.pt', epochs=3, start=scratch/'first.pt', lr0=.002, warmup_epochs=.2)
small_run = train_fastsam(tiles, scratch/'small.pt', epochs=6, imgsz=160)
longer = train_fastsam(tiles, scratch/'longer.pt', epochs=1, imgsz=160, start=scratch/'small.pt', lr0=1e-4)
total = np.sum([small_run[k] for k in ('box', 'seg', 'cls')], 0)
print(f'{len(total)} steps, loss {total[:2].mean():.1f} at the start, {total[-2:].mean():.1f} at the end')
assert total[-2:].mean()<total[:2].mean()
assert np.mean(longer['box'])<np.mean(small_run['box'][:2])

# %%
made = Proposer(scratch/'small.pt', conf=.01, device='cpu')
assert (scratch/'small.pt').stat().st_size<8e6; test_eq(made([ego_image])[0].size, (704, 704))
held = torch.load(scratch/'small.pt', weights_only=True)['history']; test_eq(held, small_run)
for file in (scratch/'small.pt', WEIGHTS): assert not any(w in file.read_bytes() for w in (b'/work', b'/home', b'/tmp', str(scratch).encode()))

# %% [markdown]
The curves of the run that made the shipped checkpoint, as they are recorded in it: losses over 2,750 steps, the second cut after the dashed line, and the oracle IoU on every fifth frame of the val takes at the ends of some epochs. Its script was these steps with other random draws, so the recipe gives a network like it, not its bytes.

# %%
history = torch.load(WEIGHTS, weights_only=True)['history']
fig, axs = plt.subplots(1, 2, figsize=(10, 3), dpi=90)
smooth = lambda v: pd.Series(v).rolling(40, min_periods=5, center=True).mean()
for name, color in zip(('box', 'seg', 'cls'), PALETTE[[5,4,2]]/255): axs[0].plot(smooth(history[name]), c=color, label=name)
for ax in axs: ax.axvline(2000, c='0.6', ls='--', lw=1)
axs[0].set(xlabel='step', ylabel='loss (mean of 40 steps)', ylim=(0, None)); axs[0].legend(frameon=False)
for view, color in zip(('ego', 'exo'), PALETTE[[5,4]]/255): axs[1].plot(history['val']['step'], history['val'][view], 'o-', c=color, label=f'{view} frames')
axs[1].set(xlabel='step', ylabel='oracle IoU, val', ylim=(0, 1)); axs[1].legend(frameon=False)
plt.tight_layout()
test_eq(len(history['box']), len(history['seg'])); assert np.mean(history['seg'][-100:])<.75*np.mean(history['seg'][:100])

# %%
#| hide
shutil.rmtree(scratch)

# %%
#| hide
import nbdev; nbdev.nbdev_export()
