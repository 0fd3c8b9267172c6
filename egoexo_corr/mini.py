
import os, shutil, sys, uuid
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastcore.basics import patch
from .core import ArgumentError, DataError, EgoExoError, atomic_path, read_json, view_of, write_json
from .masks import encode_annotation, rle_areas, rle_boxes, rle_encode

if sys.platform.startswith('linux'): os.environ.setdefault('MUJOCO_GL', 'osmesa')



@lru_cache
def sim_missing() -> str: # '' if scenes can be rendered here
    "What is missing for rendering and how to get it, in one line"
    try: import mujoco
    except ModuleNotFoundError: return "MuJoCo is not installed, so no scene is rendered here: pip install 'egoexo_corr[sim]' (the shipped data/mini needs none of it)"
    except Exception as e: problem = e
    else:
        try: mujoco.GLContext(8, 8).free(); return ''
        except Exception as e: problem = e
    return (f"no off-screen OpenGL ({type(problem).__name__}), so no scene is rendered here: install libosmesa6 (Debian, Ubuntu), "
            "or set MUJOCO_GL=egl where there is a GPU (the shipped data/mini needs none of it)")



class Mesh(NamedTuple):
    "Triangles with texture coordinates"
    vertices:np.ndarray # float [V, 3], metres
    faces:np.ndarray    # int [F, 3], counter-clockwise from outside
    uv:np.ndarray       # float [V, 2], u to the right and v down the texture, from 0 to 1

def join(meshes) -> Mesh:
    "Several meshes as one"
    offsets = np.cumsum([0]+[len(m.vertices) for m in meshes[:-1]])
    return Mesh(np.concatenate([m.vertices for m in meshes]), np.concatenate([m.faces+o for m,o in zip(meshes, offsets)]),
                np.concatenate([m.uv for m in meshes]))

def grid(points, uv) -> Mesh:
    "A sheet of `[R, C]` points, two triangles a cell"
    r, c = points.shape[:2]
    i = (np.arange(r-1)[:,None]*c + np.arange(c-1)).ravel()
    faces = np.concatenate([np.stack([i, i+1, i+c+1], 1), np.stack([i, i+c+1, i+c], 1)])
    return Mesh(points.reshape(-1, 3), faces, uv.reshape(-1, 2))



FACES = {'front': ((1,0,0), (0,0,1)), 'back': ((-1,0,0), (0,0,1)), 'left': ((0,-1,0), (0,0,1)), 'right': ((0,1,0), (0,0,1)),
         'top': ((1,0,0), (0,1,0)), 'bottom': ((1,0,0), (0,-1,0))}

def box_mesh(
    size,      # Width (x), depth (y) and height (z), metres
    cells=2,   # Cells along each side of each face
    repeat=None # How often each face shows the whole texture across and down; by default the faces are six cells of one texture
) -> Mesh:     # Centred on the origin
    "A box; its faces lie in the texture as 3 × 2 cells: front, back, left | right, top, bottom"
    size, s, parts = np.asarray(size, float), np.linspace(-1, 1, cells+1), []
    for k,(right, up) in enumerate(np.array(list(FACES.values()), float)):
        out = np.cross(right, up)
        points = (s[:,None]*right)[None] + (-s[:,None]*up)[:,None] + out
        uv = np.stack(np.meshgrid(s/2+.5, s/2+.5), -1)
        uv = uv*repeat if repeat is not None else (uv*.98+.01 + (k%3, k//3))/(3, 2)
        parts.append(grid(points*size/2, uv))
    return join([Mesh(m.vertices, m.faces[:,::-1], m.uv) for m in parts])



def turn(
    profile,     # [S, 3] radius and height as fractions and v, from the middle of the bottom outwards, up and (for hollow things) down inside
    width:float, # Metres
    height:float,# Metres
    sides:int=28 # Points around
) -> Mesh:       # Centred on the origin
    "A turned shape; u runs around it, v as the profile says"
    r, z, v = np.asarray(profile, float).T[...,None]
    a = np.linspace(0, 2*np.pi, sides+1)
    points = np.stack(np.broadcast_arrays(r*np.cos(a)*width/2, r*np.sin(a)*width/2, (z-.5)*height), -1)
    return grid(points, np.stack(np.broadcast_arrays(a/(2*np.pi), v), -1))



def sweep(
    spine,          # [S, 3] points along the middle
    half,           # [S, 2] half width and half thickness at each
    across=(0,1,0), # Direction of the width, at right angles to the spine
    power:float=2,  # 2 for an ellipse, more for a rounded rectangle
    sides:int=20    # Points around
) -> Mesh:
    "A tube of changing cross-section; u runs around it, v from 1 to 0 along it"
    spine, half = np.asarray(spine, float), np.asarray(half, float)
    a = np.linspace(0, 2*np.pi, sides+1)
    ring = np.stack([np.cos(a), np.sin(a)], 1)
    ring /= ((np.abs(ring)**power).sum(1)**(1/power))[:,None]
    along, across = np.gradient(spine, axis=0), np.asarray(across, float)
    thick = np.cross(along, across); thick /= np.linalg.norm(thick, axis=1, keepdims=True)
    points = spine[:,None] + ring[:,:1]*half[:,None,:1]*across + ring[:,1:]*half[:,None,1:]*thick[:,None]
    v = np.linspace(1, 0, len(spine))
    return grid(points, np.stack(np.broadcast_arrays(a/(2*np.pi), v[:,None]), -1))



def sheet(
    width:float, depth:float, # Metres
    folds,                    # Function of x and y in [-1, 1], metres above the table
    thick:float=.006,         # Metres
    cells:int=24              # Along each side
) -> Mesh:
    "A cloth: a wavy sheet with an underside"
    x, y = np.meshgrid(np.linspace(-1, 1, cells+1), np.linspace(1, -1, cells+1))
    top = np.stack([x*width/2, y*depth/2, folds(x, y)+thick], -1)
    edge = (np.maximum(abs(x), abs(y))<1)[...,None]
    uv = np.stack([x/2+.5, .5-y/2], -1)
    above = grid(np.where(edge, top, top*(1,1,0)), uv)
    below = grid(top*(1,1,0), uv)
    return join([Mesh(above.vertices, above.faces[:,::-1], above.uv), below])



COLORS = dict(red=(200,38,42), orange=(232,120,28), yellow=(238,196,50), green=(52,142,66), teal=(26,142,142), blue=(38,84,176),
              purple=(112,58,140), pink=(226,118,150), brown=(126,80,48), white=(236,234,226), black=(42,42,46), gray=(142,146,150))
SYLLABLES = 'ba be bi bo ca co da de di do fa fe fi ga go ka ki la le li lo ma me mi mo na ne no pa pe po ra re ri ro sa se si so ta te ti to va ve vi za zo'.split()

def noise(rng, height:int, width:int, detail=(4, 16, 64), weights=(1, .5, .25)) -> np.ndarray: # float32 [height, width], about −1 to 1
    "Smooth random texture, the sum of some scales"
    from PIL import Image
    out = np.zeros((height, width), np.float32)
    for n, w in zip(detail, weights):
        rough = Image.fromarray(rng.uniform(-1, 1, (n, max(2, n*width//height))).astype(np.float32))
        out += w*np.asarray(rough.resize((width, height), Image.BICUBIC))
    return out/sum(weights)

def shade(color, amount) -> np.ndarray: # uint8 [..., 3]
    "A colour made lighter (amount > 0) or darker, for one amount or an image of amounts"
    color, amount = np.asarray(color, np.float32), np.asarray(amount, np.float32)[...,None]
    return np.clip(np.where(amount>0, color+(255-color)*amount, color*(1+amount)), 0, 255).round().astype(np.uint8)

def word(rng) -> str:
    "A brand that does not exist"
    return ''.join(rng.choice(SYLLABLES, rng.integers(2, 4))).capitalize()



class Style(NamedTuple):
    "What is printed on an object: look-alikes share the shape and the layout"
    base:tuple; accent:tuple; ink:tuple # RGB
    brand:str
    icon:int    # 0 to 5
    layout:int  # 0 to 3

def paint_icon(draw, xy, r, icon, color):
    "One of six simple signs"
    x, y = xy
    star = [(x+r*k*np.sin(np.pi*i/5), y-r*k*np.cos(np.pi*i/5)) for i in range(10) for k in [(1, .45)[i%2]]]
    if icon==0: draw.ellipse((x-r, y-r, x+r, y+r), fill=color)
    elif icon==1: draw.polygon(star, fill=color)
    elif icon==2: draw.rectangle((x-r, y-r/3, x+r, y+r/3), fill=color); draw.rectangle((x-r/3, y-r, x+r/3, y+r), fill=color)
    elif icon==3: draw.polygon([(x, y-r), (x+r*.8, y), (x, y+r), (x-r*.8, y)], fill=color)
    elif icon==4:
        for i in range(3): draw.arc((x-r, y-r+i*r*.6, x+r, y+r*.6+i*r*.6), 200, 340, fill=color, width=max(2, int(r/4)))
    else: draw.pieslice((x-r, y-r, x+r, y+r), 30, 250, fill=color)



def paint_text(draw, box, text, color):
    "A word as large as the box (x0, y0, x1, y1) allows"
    from PIL import ImageFont
    x0, y0, x1, y1 = box
    font = ImageFont.load_default(max(8, int(min((y1-y0)*.95, 1.75*(x1-x0)/len(text)))))
    draw.text(((x0+x1)/2, (y0+y1)/2), text, color, font, anchor='mm')

def paint_print(draw, box, color, rng):
    "Lines of text too small to read"
    x0, y0, x1, y1 = box
    for y in np.arange(y0, y1-2, 6): draw.line((x0, y, x0+(x1-x0)*rng.uniform(.5, 1), y), fill=color, width=2)

def paint_label(draw, box, style:Style, rng):
    "A printed front: a brand, a sign, a band and small print, in one of four layouts"
    x0, y0, x1, y1 = box; w, h = x1-x0, y1-y0
    if style.layout==0:
        draw.rectangle((x0, y0+h*.55, x1, y0+h*.82), fill=style.accent)
        paint_icon(draw, (x0+w/2, y0+h*.36), min(w, h)*.15, style.icon, style.accent); words = (.03, .22)
    elif style.layout==1:
        draw.polygon([(x0, y0+h*.45), (x1, y0+h*.25), (x1, y1), (x0, y1)], fill=style.accent)
        paint_icon(draw, (x0+w/2, y0+h*.68), min(w, h)*.2, style.icon, style.base); words = (.06, .26)
    elif style.layout==2:
        draw.rectangle((x0, y0, x1, y0+h*.34), fill=style.accent)
        paint_icon(draw, (x0+w*.5, y0+h*.56), min(w, h)*.17, style.icon, style.ink); words = (.06, .28)
    else:
        for i in range(4): draw.rectangle((x0+w*(.08+.23*i), y0+h*.4, x0+w*(.2+.23*i), y0+h*(.6+.09*(i%2))), fill=style.accent)
        paint_icon(draw, (x0+w*.5, y0+h*.28), min(w, h)*.1, style.icon, style.accent); words = (.02, .17)
    ink = style.base if style.layout==2 else style.ink
    paint_text(draw, (x0+w*.06, y0+h*words[0], x1-w*.06, y0+h*words[1]), style.brand, ink)
    paint_print(draw, (x0+w*.1, y0+h*.86, x1-w*.1, y1-2), style.ink, rng)



def canvas(color, width:int, height:int, rng, grain:float=.05):
    "A Pillow image of one slightly uneven colour, and its pen"
    from PIL import Image, ImageDraw
    image = Image.fromarray(shade(color, grain*noise(rng, height, width, (3, 12, 48))))
    return image, ImageDraw.Draw(image)

def paint_carton(style, rng, cell=144):
    "Six faces of a box: label in front and behind, text and barcode at the sides"
    image, draw = canvas(style.base, 3*cell, 2*cell, rng)
    def face(k): x, y = k%3*cell, k//3*cell; return x+1, y+1, x+cell-1, y+cell-1
    for k in (0, 1): paint_label(draw, face(k), style, rng)
    for k in (2, 3):
        x0, y0, x1, y1 = face(k)
        draw.rectangle((x0, y0+cell*.55, x1, y0+cell*.82), fill=style.accent)
        paint_print(draw, (x0+14, y0+12, x1-14, y0+cell*.45), style.ink, rng)
        if k==3:
            for x in np.arange(x0+30, x1-30, 5): draw.rectangle((x, y0+cell*.58, x+rng.integers(1, 4), y0+cell*.79), fill=(20,20,20))
    for k in (4, 5):
        x0, y0, x1, y1 = face(k)
        paint_text(draw, (x0+8, y0+cell*.3, x1-8, y0+cell*.7), style.brand, style.accent)
    return np.asarray(image)



def paint_turned(style, rng, label=(.35, .75), cap=.2, cap_color=None):
    "Around a turned object: the label between two heights (as v), the cap above the third"
    w, h = 432, 288
    image, draw = canvas(style.base, w, h, rng)
    if cap: draw.rectangle((0, 0, w, cap*h), fill=tuple(cap_color or style.accent))
    if label:
        y0, y1 = label[0]*h, label[1]*h
        draw.rectangle((0, y0, w, y1), fill=tuple(shade(style.base, .75) if sum(style.base)<560 else shade(style.base, -.12)))
        paper = style._replace(base=tuple(shade(style.base, .75)), ink=(30,30,34)) if sum(style.base)<560 else style
        for i in range(2): paint_label(draw, (i*w/2+8, y0, (i+1)*w/2-8, y1), paper, rng)
    return np.asarray(image)

def paint_dots(style, rng, inside=.5):
    "Crockery: a pattern outside (v above `inside`), plain within"
    w, h = 432, 288
    image, draw = canvas(style.base, w, h, rng, .03)
    y0, y1 = inside*h, h
    if style.layout==0:
        for k in range(8): paint_icon(draw, ((k+.5)*w/8, (y0+y1)/2-8), 17, style.icon, style.accent)
    elif style.layout==1: draw.rectangle((0, y0+20, w, y0+48), fill=style.accent); draw.rectangle((0, y0+58, w, y0+66), fill=style.ink)
    elif style.layout==2:
        for k in range(12): draw.rectangle((k*w/12, y0, (k+.5)*w/12, y1), fill=style.accent)
    else:
        for i in range(2): paint_text(draw, (i*w/2+20, y0+20, (i+1)*w/2-20, y1-50), style.brand, style.accent)
        draw.rectangle((0, y0, w, y0+12), fill=style.ink)
    return np.asarray(image)



def paint_cloth(style, rng):
    "Woven stripes, checks or dots"
    image, draw = canvas(style.base, 256, 256, rng, .12)
    n = 5+style.icon
    pixels = np.asarray(image).astype(np.float32)
    stripe = ((np.arange(256)*n//256)%2).astype(np.float32)
    amount = [stripe[None]*np.ones((256,1)), (stripe[None]+stripe[:,None])/2, stripe[:,None]*(stripe[None]>0),
              ((np.arange(256)[None]*n%256-128)**2+(np.arange(256)[:,None]*n%256-128)**2<60**2)*1.][style.layout][...,None]
    return (pixels*(1-amount)+np.array(style.accent)*amount).round().astype(np.uint8)

def paint_skin(style, rng):
    "Fruit and vegetables: mottled, with a paler end"
    a = .35*noise(rng, 128, 192, (3, 14, 60), (1, .7, .6)) + .35*np.linspace(1, -.6, 128)[:,None]**3
    out = shade(style.base, a)
    out[:7] = (92, 70, 36)
    return out

def paint_tool(style, rng, handle=.45):
    "A metal or wooden end and a coloured handle (v above `handle`), with a band and a brand"
    image, draw = canvas(style.accent if style.layout%2 else (190,192,196), 96, 288, rng, .15)
    draw.rectangle((0, handle*288, 96, 288), fill=style.base)
    draw.rectangle((0, handle*288, 96, handle*288+12), fill=style.ink)
    draw.rectangle((0, 250, 96, 262), fill=style.accent)
    return np.asarray(image)



def paint_pouch(style, rng):
    "A flat pack: the same label on both sides"
    image, draw = canvas(style.base, 384, 192, rng, .08)
    for i in range(2):
        paint_label(draw, (i*192+22, 16, i*192+170, 176), style, rng)
    for y in (2, 182): draw.rectangle((0, y, 384, y+8), fill=tuple(shade(style.base, -.2)))
    return np.asarray(image)

def paint_cassette(style, rng, cell=144):
    "A rapid test: window with lines, sample well, brand"
    image, draw = canvas(style.base, 3*cell, 2*cell, rng, .03)
    x0, y0 = cell, cell
    draw.rounded_rectangle((x0+62, y0+42, x0+104, y0+100), 6, fill=(250,250,250), outline=(120,120,120), width=3)
    for i in range(1+style.icon%2): draw.rectangle((x0+70+i*16, y0+46, x0+75+i*16, y0+96), fill=(190,40,70))
    draw.ellipse((x0+22, y0+50, x0+50, y0+92), fill=(225,225,230), outline=(120,120,120), width=3)
    draw.rectangle((x0+114, y0+6, x0+140, y0+138), fill=style.accent)
    paint_text(draw, (x0+10, y0+6, x0+108, y0+36), style.brand, style.ink)
    return np.asarray(image)



PROFILES = { # radius, height, v
    'bottle': [(0,0,1), (.85,0,.97), (1,.03,.94), (1,.58,.4), (.85,.68,.32), (.36,.8,.22), (.34,.86,.2), (.42,.87,.19), (.42,1,.05), (0,1,0)],
    'jar': [(0,0,1), (.9,0,.97), (1,.05,.94), (1,.72,.35), (.82,.8,.26), (.82,.82,.24), (.9,.83,.22), (.9,1,.08), (0,1,0)],
    'tin': [(0,0,1), (1,0,.95), (1,.03,.92), (1,.97,.1), (1,1,.08), (.92,1,.06), (.92,.97,.04), (0,.97,0)],
    'cup': [(0,0,1), (.8,0,.97), (.86,.05,.94), (1,1,.52), (.92,1,.5), (.8,.1,.1), (0,.08,0)],
    'bowl': [(0,0,1), (.45,0,.97), (.5,.06,.94), (.85,.5,.75), (1,1,.52), (.95,1,.5), (.8,.52,.3), (.42,.14,.1), (0,.12,0)],
    'plate': [(0,0,0), (.6,0,.2), (.65,.15,.3), (1,.8,.45), (1,1,.5), (.62,.4,.75), (0,.35,1)],
    'roll': [(.35,0,1), (1,0,.9), (1,1,.3), (.35,1,.12), (.35,0,0)],
    'dropper': [(0,0,1), (.95,0,.97), (1,.04,.94), (1,.55,.4), (.5,.64,.3), (.55,.66,.28), (.5,.78,.18), (.16,1,.02), (0,1,0)],
    'round': [(np.sin(a), .5-np.cos(a)/2, 1-a/np.pi) for a in np.linspace(0, np.pi, 13)],
    'vial': [(0,0,1), (.5,.01,.97), (.9,.05,.94), (1,.1,.9), (1,.8,.25), (1.15,.81,.22), (1.15,1,.05), (0,1,0)]}



def mug_mesh(size) -> Mesh:
    "A cup with a handle"
    w, d, h = size
    a = np.linspace(-.5*np.pi, .5*np.pi, 9)
    spine = np.stack([.47*d+.36*d*np.cos(a), 0*a, .3*h*np.sin(a)], 1)
    handle = sweep(spine, np.full((9, 2), (.09*d, .06*d)), power=3, sides=10)
    return join([turn(PROFILES['cup'], d, h), Mesh(handle.vertices, handle.faces, handle.uv*(.04, .03)+(.02, .5))])

def bar_mesh(size, stations, power=2) -> Mesh:
    "A long thing along x: `stations` are position, height, half width and half thickness as fractions of the size"
    x, z, a, b = np.asarray(stations, float).T
    w, d, h = size
    spine = np.stack([(x-.5)*w + 1e-5*np.arange(len(x)), 0*x, (z-.5)*h], 1)
    return sweep(spine, np.stack([a*d, b*h], 1), power=power)

BARS = { # position, height, half width, half thickness
    'spoon': [(0,.4,0,0), (0,.4,.15,.2), (.55,.35,.12,.18), (.68,.6,.12,.15), (.74,.55,.3,.15), (.85,.35,.5,.14), (.95,.45,.36,.12), (1,.6,0,.05)],
    'knife': [(0,.5,0,0), (.01,.5,.34,.5), (.2,.5,.3,.46), (.4,.5,.36,.5), (.42,.5,.5,.14), (.8,.5,.5,.13), (.95,.5,.26,.1), (1,.5,0,.05)],
    'spatula': [(0,.4,0,0), (.01,.4,.16,.3), (.5,.4,.14,.3), (.64,.6,.12,.2), (.68,.5,.48,.12), (1,.3,.5,.1), (1,.3,0,0)],
    'pen': [(0,.5,0,0), (.01,.5,.45,.45), (.5,.5,.5,.5), (.88,.5,.45,.45), (.97,.5,.15,.15), (1,.5,0,0)],
    'thermometer': [(0,.5,0,0), (.01,.5,.4,.45), (.3,.5,.5,.5), (.6,.5,.4,.45), (.75,.5,.2,.25), (.98,.5,.15,.2), (1,.5,0,0)],
    'tube': [(0,.5,0,0), (.01,.5,.5,.07), (.1,.5,.5,.1), (.5,.5,.46,.4), (.82,.5,.4,.5), (.86,.5,.25,.32), (.87,.5,.28,.36), (1,.5,.26,.34), (1,.5,0,0)],
    'pouch': [(0,.5,0,0), (0,.5,.48,.1), (.06,.5,.48,.12), (.25,.5,.47,.42), (.5,.5,.47,.5), (.75,.5,.47,.42), (.94,.5,.48,.12), (1,.5,.48,.1), (1,.5,0,0)],
    'banana': [(0,.9,0,0), (.02,.85,.14,.12), (.12,.6,.3,.22), (.3,.36,.46,.3), (.5,.28,.5,.3), (.7,.36,.46,.3), (.88,.6,.3,.22), (.97,.85,.12,.1), (1,.92,0,0)]}



class Kind(NamedTuple):
    "A sort of object: where it occurs (Cooking, Health), its size and how it is made"
    where:str     # 'C', 'H' or 'CH'
    size:tuple    # Width, depth and height, metres
    build:object  # size -> Mesh
    paint:object  # Style, rng -> uint8 [h, w, 3]
    colors:tuple=tuple(COLORS)

def turned(profile, **label): return (lambda size: turn(PROFILES[profile], size[1], size[2])), (lambda style, rng: paint_turned(style, rng, **label))
def bar(name, paint, power=2): return (lambda size: bar_mesh(size, BARS[name], power)), paint
def crockery(profile): return (lambda size: turn(PROFILES[profile], size[1], size[2])), paint_dots
def cloth(size): return sheet(size[0], size[1], lambda x, y: size[2]*(.3+.3*np.sin(3.1*x+2*y)+.25*np.sin(5*y-2.3*x)+.1*np.sin(9*x)))
STEEL = (176,180,184)



KINDS = {
    'tea box': Kind('C', (.085,.065,.13), box_mesh, paint_carton), 'cracker box': Kind('C', (.16,.06,.2), box_mesh, paint_carton),
    'milk carton': Kind('C', (.075,.075,.19), box_mesh, paint_carton), 'butter pack': Kind('C', (.11,.07,.05), box_mesh, paint_carton),
    'sauce bottle': Kind('C', (.07,.07,.2), *turned('bottle', label=(.45,.88))), 'jam jar': Kind('C', (.08,.08,.11), *turned('jar', label=(.42,.9), cap=.25)),
    'food tin': Kind('C', (.08,.08,.11), *turned('tin', label=(.14,.9), cap=.1, cap_color=STEEL)),
    'tuna tin': Kind('C', (.1,.1,.045), *turned('tin', label=(.14,.9), cap=.1, cap_color=STEEL)),
    'spice shaker': Kind('C', (.05,.05,.1), *turned('jar', label=(.42,.9), cap=.25)), 'mug': Kind('CH', (.12,.085,.095), mug_mesh, paint_dots),
    'bowl': Kind('C', (.16,.16,.07), *crockery('bowl')), 'plate': Kind('C', (.2,.2,.025), *crockery('plate')), 'cup': Kind('CH', (.075,.075,.1), *crockery('cup')),
    'apple': Kind('C', (.08,.08,.072), lambda size: turn(PROFILES['round'], size[1], size[2]), paint_skin, ('red', 'green', 'yellow')),
    'onion': Kind('C', (.075,.075,.065), lambda size: turn(PROFILES['round'], size[1], size[2]), paint_skin, ('white', 'purple', 'brown')),
    'banana': Kind('C', (.19,.045,.06), *bar('banana', paint_skin), ('yellow', 'green', 'brown')), 'spoon': Kind('C', (.26,.055,.03), *bar('spoon', paint_tool)),
    'knife': Kind('C', (.27,.035,.02), *bar('knife', paint_tool, 4)), 'spatula': Kind('C', (.3,.08,.03), *bar('spatula', paint_tool, 3)),
    'sponge': Kind('C', (.11,.07,.035), box_mesh, paint_carton), 'towel': Kind('CH', (.22,.17,.02), cloth, paint_cloth)}



KINDS |= {
    'test kit box': Kind('H', (.16,.09,.06), box_mesh, paint_carton), 'medicine box': Kind('H', (.11,.045,.07), box_mesh, paint_carton),
    'glove box': Kind('H', (.22,.11,.08), box_mesh, paint_carton), 'mask box': Kind('H', (.18,.1,.085), box_mesh, paint_carton),
    'test cassette': Kind('H', (.085,.03,.012), box_mesh, paint_cassette), 'leaflet': Kind('H', (.15,.11,.004), box_mesh, paint_carton),
    'tissue box': Kind('CH', (.13,.12,.1), box_mesh, paint_carton), 'buffer bottle': Kind('H', (.035,.035,.08), *turned('dropper', label=(.45,.88), cap=.3)),
    'pump bottle': Kind('H', (.065,.065,.17), *turned('bottle', label=(.45,.88))), 'pill bottle': Kind('H', (.055,.055,.095), *turned('jar', label=(.42,.9), cap=.25)),
    'test tube': Kind('H', (.022,.022,.11), *turned('vial', label=(.4,.7), cap=.22)), 'bandage roll': Kind('H', (.07,.07,.05), *turned('roll', label=(.35,.85), cap=0)),
    'cream tin': Kind('H', (.085,.085,.035), *turned('tin', label=(.14,.9), cap=.1)), 'ointment tube': Kind('H', (.16,.05,.035), *bar('tube', paint_pouch, 2.5)),
    'swab package': Kind('H', (.19,.045,.012), *bar('pouch', paint_pouch, 4)), 'wipes package': Kind('H', (.17,.1,.045), *bar('pouch', paint_pouch, 4)),
    'marker': Kind('H', (.14,.016,.016), *bar('pen', paint_tool)), 'thermometer': Kind('H', (.13,.026,.018), *bar('thermometer', paint_tool))}



SPLITS = dict(train=(2, 3), val=(1, 3), test=(1, 3)) # Families of each kind, and models of each family

class Model(NamedTuple):
    "One object that could be bought: a shape and its print"
    kind:str
    split:str
    family:int  # Look-alikes are the models of a family: same shape and layout
    variant:int

    @property
    def rng(self): return np.random.default_rng([list(KINDS).index(self.kind), list(SPLITS).index(self.split), self.family])

def models(split:str, scenario:str='') -> list[Model]:
    "All models of a split, of one scenario or all"
    families, variants = SPLITS[split]
    return [Model(kind, split, f, v) for kind,k in KINDS.items() if not scenario or scenario[0] in k.where for f in range(families) for v in range(variants)]



class Thing(NamedTuple):
    "A model made: its name, shape and texture"
    name:str            # As an annotator would call it: 'red tea box'
    model:Model
    size:np.ndarray     # float [3], width, depth and height in metres
    mesh:Mesh
    texture:np.ndarray  # uint8 [h, w, 3]

def styles(rng, n:int, colors=tuple(COLORS)) -> list[tuple[str,Style]]:
    "The colour names and styles of `n` look-alikes: other colours, or the same colour with another label"
    icon, layout, same = int(rng.integers(6)), int(rng.integers(4)), rng.random()<.35
    bases, others = rng.permutation(colors), rng.permutation(list(COLORS))
    out = []
    for i in range(n):
        base = str(bases[0 if same else i])
        accent, ink = (COLORS[c] for c in [c for c in others if c!=base][2*i:2*i+2])
        if np.abs(np.subtract(ink, COLORS[base])).sum()<260: ink = (250,250,250) if sum(COLORS[base])<380 else (25,25,30)
        out.append((base, Style(COLORS[base], accent, ink, word(rng), (icon+(i if same else 0))%6, layout)))
    return out

@lru_cache(512)
def make_thing(model:Model) -> Thing:
    "Build one model"
    kind, rng = KINDS[model.kind], model.rng
    size = np.array(kind.size)*rng.uniform(.88, 1.18)*rng.uniform(.92, 1.08, 3)
    color, style = styles(rng, SPLITS[model.split][1], kind.colors)[model.variant]
    mesh = kind.build(size)
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    mesh = mesh._replace(vertices=mesh.vertices-(low+high)/2)
    return Thing(f'{color} {model.kind}', model, high-low, mesh, kind.paint(style, np.random.default_rng([7, *model.rng.integers(1<<30, size=2), model.variant])))



class Scene:
    "A MuJoCo model in the making: meshes, textures, bodies"
    def __init__(self, size=(960, 704)):
        import mujoco
        self.mj, self.spec, self.n = mujoco, mujoco.MjSpec(), count()
        self.spec.option.timestep, self.spec.option.cone = .004, mujoco.mjtCone.mjCONE_PYRAMIDAL
        g, q = self.spec.visual.global_, self.spec.visual.quality
        g.offwidth, g.offheight, q.shadowsize, q.offsamples = *size, 2048, 4
        self.spec.visual.map.znear, self.spec.visual.map.zfar = .01, 12
        self.spec.stat.extent, self.spec.stat.center = 1, (0, 0, 0)

    def material(self, texture, shine:float=.2):
        name, tex, mat = f'm{next(self.n)}', self.spec.add_texture(), self.spec.add_material()
        tex.name, tex.type, tex.nchannel = name, self.mj.mjtTexture.mjTEXTURE_2D, 3
        tex.height, tex.width = texture.shape[:2]
        tex.data = np.ascontiguousarray(texture).tobytes()
        mat.name, mat.specular, mat.shininess = name, shine, .4
        mat.textures[self.mj.mjtTextureRole.mjTEXROLE_RGB] = name
        return name

    def mesh(self, body, mesh:Mesh, material:str, group=0, **geom):
        m = self.spec.add_mesh()
        m.name, m.inertia = f's{next(self.n)}', self.mj.mjtMeshInertia.mjMESH_INERTIA_SHELL
        m.uservert, m.userface, m.usertexcoord = mesh.vertices.ravel().tolist(), mesh.faces.ravel().tolist(), mesh.uv.ravel().tolist()
        body.add_geom(type=self.mj.mjtGeom.mjGEOM_MESH, meshname=m.name, material=material, contype=0, conaffinity=0, mass=0, group=group, **geom)

    def collider(self, body, size, mass=0, **geom):
        body.add_geom(type=self.mj.mjtGeom.mjGEOM_BOX, size=np.asarray(size)/2, mass=mass, group=3, friction=(.8,.02,.002), **geom)



def quat_axes(x, z) -> np.ndarray: # float [4]: w, x, y, z
    "The rotation whose x axis is `x` and whose z axis is as near `z` as it can be"
    import mujoco
    x = np.asarray(x, float)/np.linalg.norm(x)
    y = np.cross(z, x); y /= np.linalg.norm(y)
    q = np.zeros(4)
    mujoco.mju_mat2Quat(q, np.stack([x, y, np.cross(x, y)], 1).ravel())
    return q

def look_at(position, target, roll:float=0) -> np.ndarray: # float [4]
    "The rotation of a camera (it looks along −z, y is up) at `position` that sees `target` in the middle"
    back = np.subtract(position, target)/np.linalg.norm(np.subtract(position, target))
    right = np.cross((np.sin(roll), 0, np.cos(roll)), back)
    return quat_axes(right, back)



def paint_room(kind:str, rng, size:int=512) -> np.ndarray: # uint8 [size, size, 3]
    "A surface that may be repeated: wood, stone, tiles, plaster, checks"
    n = noise(rng, size, size, (4, 24, 128))
    base = np.array(COLORS[rng.choice(list(COLORS))], float)
    pale = base*.25 + np.array((205,200,190))*.75
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    if kind=='wood':
        plank = y*4//size
        tone = np.array((150,104,64))*rng.uniform(.6, 1.35) + rng.uniform(-14, 14, 3)
        grain = np.sin(y*.35+6*noise(rng, size, size, (3, 8), (1, .6))+plank*2.1)*.09 + .12*noise(rng, size, size, (200,), (1,)) + .1*(plank%2)
        return shade(tone, np.where(y*4%size<5, -.45, grain))
    if kind=='stone': return shade(pale, .14*n - .35*(np.abs(noise(rng, size, size, (5, 18), (1, .6)))<.018))
    if kind=='tiles':
        c = size//4; seam = (x%c<5)|(y%c<5)
        tone = rng.uniform(-.08, .08, (4, 4))[y//c, x//c]
        return shade(pale, np.where(seam, -.3, tone+.05*n))
    if kind=='checks':
        c = size//8; amount = ((x//c)%2+(y//c)%2)/2
        return (np.array((232,228,218))*(1-amount[...,None]) + base*amount[...,None] + 5*n[...,None]).clip(0, 255).astype(np.uint8)
    return shade(pale, .07*n)



def add_room(scene:Scene, rng):
    "Floor, walls, a table whose top is z = 0, things standing around, and light"
    world, mats = scene.spec.worldbody, {}
    def surface(*kinds): return scene.material(paint_room(str(rng.choice(kinds)), rng), .1)
    def slab(size, pos, material, repeat, cells=14):
        scene.mesh(world, box_mesh(size, cells, repeat), material, group=1, pos=pos)
    w, d = rng.uniform(1.5, 1.9), .84
    top, wall = surface('wood', 'stone', 'plaster', 'checks', 'stone'), surface('plaster', 'tiles', 'plaster')
    slab((w, d, .04), (0, .1, -.02), top, (2, 1))
    scene.collider(world, (w, d, .04), pos=(0, .1, -.02), priority=1)
    legs = surface('wood', 'plaster')
    for x in (-1, 1):
        for y in (-.26, .46): slab((.06, .06, .7), (x*(w/2-.08), y, -.39), legs, (1, 1), 2)
    slab((8, 8, .02), (0, 0, -.75), surface('wood', 'tiles', 'stone'), (6, 6), 20)
    far = rng.uniform(1.5, 3)
    for x, y, along in ((0, far, 8), (0, -3.2, 8), (-3.6, 0, .1), (3.6, 0, .1)):
        slab((along, 8.1-along, 3), (x, y, .74), wall, (5, 3))
    for _ in range(5):
        size = (rng.uniform(.4, 1.4), .04, rng.uniform(.3, .8))
        slab(size, (rng.uniform(-2.5, 2.5), far-.06, rng.uniform(.2, 1.1)), scene.material(paint_carton(styles(rng, 1)[0][1], rng)), (.33, .5), 2)
    cupboard = surface('wood', 'plaster')
    slab((rng.uniform(1.2, 3), .5, .85), (rng.uniform(-1, 1), far-.3, -.32), cupboard, (3, 1))
    for x in (-2.9, 2.9): slab((.7, 1.6, rng.uniform(.8, 1.8)), (x, rng.uniform(-.5, 1), -.1), cupboard, (2, 2))



def add_light(scene:Scene, rng):
    "One lamp that casts shadows, one that fills, and light from everywhere"
    warm = np.array((1, .93, .82))*(1-(t:=rng.uniform())) + np.array((.88, .95, 1))*t
    lamp = (rng.uniform(-1.1, 1.1), rng.uniform(-.5, 1), rng.uniform(1.5, 2.2))
    light = scene.mj.mjtLightType.mjLIGHT_SPOT
    scene.spec.worldbody.add_light(type=light, pos=lamp, dir=-np.array(lamp), diffuse=warm*rng.uniform(.5, .7), specular=warm*.3, cutoff=75, exponent=1, castshadow=True)
    scene.spec.worldbody.add_light(type=scene.mj.mjtLightType.mjLIGHT_DIRECTIONAL, pos=(0, 0, 3), dir=(rng.uniform(-.5, .5), rng.uniform(0, .6), -1),
                                   diffuse=warm[::-1]*rng.uniform(.12, .25), specular=(0,0,0), castshadow=False)
    head = scene.spec.visual.headlight
    head.ambient, head.diffuse, head.specular = (rng.uniform(.38, .5),)*3, (.08,)*3, (0,)*3



def add_racks(scene:Scene, rng) -> list[tuple[np.ndarray,float]]: # Where they stand (x, y) and their radius
    "One or two big things that stay where they are, so that not every camera sees everything"
    taken = []
    for _ in range(int(rng.integers(2, 5))):
        size = np.array((rng.uniform(.14, .3), rng.uniform(.1, .2), rng.uniform(.14, .28)))
        xy = np.array((rng.choice((-1, 1))*rng.uniform(.12, .6), rng.uniform(.05, .44)))
        if any(np.hypot(*(xy-p))<.3 for p,_ in taken): continue
        body = scene.spec.worldbody.add_body(name=f'rack {len(taken)}', pos=(*xy, size[2]/2), quat=quat_axes((1, rng.normal(0, .3), 0), (0,0,1)))
        scene.mesh(body, box_mesh(size, 4), scene.material(paint_room(str(rng.choice(('wood', 'plaster', 'stone'))), rng, 256), .3))
        scene.collider(body, size)
        taken.append((xy, np.hypot(*size[:2])/2))
    return taken



def choose_things(rng, split:str, scenario:str, groups:int=3, singles=(8, 13)) -> list[Thing]:
    "The objects of a take: some groups of look-alikes first, then single ones"
    pool = models(split, scenario)
    families = list(dict.fromkeys((m.kind, m.family) for m in pool))
    order = [families[i] for i in rng.permutation(len(families))]
    chosen = []
    for k,f in enumerate(order[:groups+int(rng.integers(*singles))]):
        members = [m for m in pool if (m.kind, m.family)==f]
        n = int(rng.integers(2, 4)) if k<groups else 1
        chosen += [members[i] for i in rng.permutation(len(members))[:n]]
    return [make_thing(m) for m in chosen]



def add_things(scene:Scene, things, rng, taken=()) -> list[str]: # Names of the bodies
    "Put objects on the table with room between them, the tall ones behind as a rule; what finds no room is left out"
    placed, names = list(taken), []
    for i, t in enumerate(things):
        radius = np.hypot(*t.size[:2])/2
        for _ in range(200):
            xy = np.array((rng.uniform(-.62, .62), rng.uniform(-.17, .42)))
            gap = .012 if rng.random()<.8 else -.0
            if all(np.hypot(*(xy-p))>max(radius, r)*.9+min(radius, r)*.75+gap for p,r in placed): break
        else: continue
        placed.append((xy, radius)); names.append(f'thing {i}')
        yaw = rng.uniform(-np.pi, np.pi) if t.size[2]<.1 else rng.normal(0, .7)
        pose = quat_axes((np.cos(yaw), np.sin(yaw), 0), (0, 0, 1))
        body = scene.spec.worldbody.add_body(name=names[-1], pos=(*xy, t.size[2]/2+.004), quat=pose)
        body.add_freejoint()
        scene.mesh(body, t.mesh, scene.material(t.texture, rng.uniform(.05, .5)))
        scene.collider(body, t.size, mass=.05+500*np.prod(t.size)*.5)
    return names



SKIN = ((224,178,146), (198,146,110), (150,102,70), (98,66,46), (236,200,176))
ARM = .31 # Length of a forearm and of an upper arm, metres

def add_rod(scene, body, a, b, radius:float, material:str, group:int=0):
    "A capsule from `a` to `b` that is only seen"
    body.add_geom(type=scene.mj.mjtGeom.mjGEOM_CAPSULE, fromto=[*a, *b], size=(radius, 0, 0), material=material, contype=0, conaffinity=0, mass=0, group=group)

def add_egg(scene, body, pos, size, material:str, group:int=0):
    "An ellipsoid that is only seen"
    body.add_geom(type=scene.mj.mjtGeom.mjGEOM_ELLIPSOID, pos=pos, size=size, material=material, contype=0, conaffinity=0, group=group)

def add_hand(scene:Scene, side:str, material:str):
    "A hand; its origin is the point between the fingertips, x points ahead. An invisible knuckle can push"
    body, s = scene.spec.worldbody.add_body(name=side, mocap=True), 1 if side=='left' else -1
    add_egg(scene, body, (-.085, 0, .035), (.05, .042, .018), material)
    for y, reach in ((-.03, .8), (-.011, 1), (.01, 1.05), (.03, .95)):
        knuckle = (-.05+.045*reach, y*.9, .03)
        add_rod(scene, body, (-.05, y, .035), knuckle, .0088, material); add_rod(scene, body, knuckle, (.008*reach, y*.7, .002), .008, material)
    thumb = (-.06, -.055*s, .012)
    add_rod(scene, body, (-.1, -.04*s, .03), thumb, .011, material); add_rod(scene, body, thumb, (-.02, -.035*s, 0), .0095, material)
    body.add_geom(name=f'{side} push', type=scene.mj.mjtGeom.mjGEOM_CAPSULE, fromto=(-.03, 0, .04, 0, 0, .012), size=(.03, 0, 0), contype=0, conaffinity=0, mass=0, group=3)



def add_person(scene:Scene, rng, gloves:bool):
    "A wearer without a face"
    world = scene.spec.worldbody
    def solid(color): return scene.material(shade(color, .1*noise(rng, 64, 64)), .1)
    skin, shirt = solid(SKIN[rng.integers(len(SKIN))]), scene.material(paint_cloth(styles(rng, 1)[0][1], rng), .05)
    glove = solid([(70,110,190), (225,228,232), (60,60,66)][rng.integers(3)]) if gloves else skin
    for side in ('left', 'right'):
        add_hand(scene, side, glove)
        sleeve = glove if gloves and rng.random()<.3 else skin
        for part, radius, material in (('forearm', .034, sleeve), ('arm', .048, shirt)):
            add_rod(scene, world.add_body(name=f'{side} {part}', mocap=True), (0, 0, 0), (ARM, 0, 0), radius, material)
    trunk, skull = world.add_body(name='trunk', pos=(0, -.62, 0)), world.add_body(name='skull', mocap=True)
    for x in (-.1, .1): add_rod(scene, trunk, (x, 0, -.45), (x, .04, .12), .14, shirt, 2)
    add_rod(scene, trunk, (0, .04, .2), (0, .1, .34), .055, skin, 2)
    hair = solid([(40,30,24), (90,60,36), (150,120,70), (120,120,124)][rng.integers(4)])
    add_egg(scene, skull, (0, 0, 0), (.085, .1, .12), skin, 2); add_egg(scene, skull, (0, -.02, .025), (.092, .1, .115), hair, 2)



EGO, EXO = 'aria01_214-1', ('cam01', 'cam02')
SIZES = dict(ego=(704, 704), exo=(540, 960)) # Height and width

def add_cameras(scene:Scene, rng):
    "The ego camera on a head that moves, and two far cameras, one from each side"
    world = scene.spec.worldbody
    head = world.add_body(name='head', mocap=True)
    head.add_camera(name=EGO, fovy=rng.uniform(66, 78))
    for name, sign, k in zip(EXO, rng.permutation((-1, 1)), rng.permutation(2)):
        around = np.deg2rad(90+sign*rng.uniform(*[(20, 85), (95, 150)][k]))
        away, up = rng.uniform(1.3, 1.9), rng.uniform(.3, .8)
        pos = np.array((away*np.cos(around), .1+away*np.sin(around), up))
        aim = (rng.uniform(-.2, .2), rng.uniform(-.12, .15), rng.uniform(-.05, .1))
        world.add_camera(name=name, pos=pos, quat=look_at(pos, aim, rng.uniform(-.04, .04)), fovy=rng.uniform(26, 35))



TICK = .02 # Seconds between two positions of the hands
SHOULDER = np.array((.2, -.54, .2))

class Stage:
    "A scene that runs: physics, hands, head, cameras"
    def __init__(self,
        split:str,    # Whose models may appear
        scenario:str, # 'Cooking' or 'Health'
        seed          # Whole number or a list of them
    ):
        import mujoco
        self.mj, self.rng = mujoco, np.random.default_rng(seed)
        scene, rng = Scene(), self.rng
        add_room(scene, rng); add_light(scene, rng); add_person(scene, rng, scenario=='Health' or rng.random()<.2); add_cameras(scene, rng)
        things = choose_things(rng, split, scenario)
        self.racks = add_racks(scene, rng)
        names = add_things(scene, things, rng, self.racks)
        self.things = {n: things[int(n.split()[1])] for n in names}
        self.model = scene.spec.compile()
        self.data = mujoco.MjData(self.model)
        self.hand = {s: np.array((x*.2, -.2, .12)) for s,x in (('left', -1), ('right', 1))}
        self.pitch, self.held, self.busy, self.touched = dict(left=-.3, right=-.3), {}, {}, []
        self.gaze, self.attention, self.sway = np.array((0, .05, 0.)), np.zeros(3), rng.uniform(0, 2*np.pi, 6)
        self.head = np.array((rng.uniform(-.05, .05), rng.uniform(-.4, -.32), rng.uniform(.46, .56)))
        self.programs = [self.work(s, np.random.default_rng(rng.integers(1<<60))) for s in self.hand]
        for _ in range(150): mujoco.mj_step(self.model, self.data)
        self.place_body()



@patch
def put(self:Stage, name, pos, quat):
    "Move a body that the physics does not move"
    i = self.model.body_mocapid[self.model.body(name).id]
    self.data.mocap_pos[i], self.data.mocap_quat[i] = pos, quat

@patch
def position(self:Stage, name) -> np.ndarray: return self.data.body(name).xpos.copy()

@patch
def frame(self:Stage, side) -> tuple[np.ndarray,np.ndarray]: # Position and rotation
    "Where a hand is: the point between its fingertips and the way it points"
    s = SHOULDER*((-1,1,1) if side=='left' else 1)
    ahead = self.hand[side]-s; ahead[2] = 0
    ahead /= np.linalg.norm(ahead)
    return self.hand[side], quat_axes((*ahead[:2]*np.cos(self.pitch[side]), np.sin(self.pitch[side])), (0,0,1))



def bend_arm(shoulder, wrist, outward:float):
    "Shoulder and elbow of an arm that reaches the wrist; where it is too short the shoulder follows"
    d = wrist-shoulder; n = np.linalg.norm(d); d /= n
    shoulder = shoulder + d*max(0, n-1.98*ARM); n = min(n, 1.98*ARM)
    pole = np.array((outward, -.3, -1)); pole -= d*(pole@d); pole /= np.linalg.norm(pole)
    return shoulder, shoulder + d*n/2 + pole*np.sqrt(ARM**2-n**2/4)



@patch
def carry(self:Stage, side:str, pos, quat):
    "Put what a hand holds where the hand is"
    name, offset, turn = self.held[side]
    j = self.model.body(name).jntadr[0]; q, v = self.model.jnt_qposadr[j], self.model.jnt_dofadr[j]
    p, r = np.zeros(3), np.zeros(4)
    self.mj.mju_rotVecQuat(p, offset, quat); self.mj.mju_mulQuat(r, quat, turn)
    self.data.qpos[q:q+7] = *(pos+p), *r; self.data.qvel[v:v+6] = 0

@patch
def place_body(self:Stage):
    "Put hands, arms, head and held things where they are now"
    for side, s in (('left', -1), ('right', 1)):
        pos, quat = self.frame(side)
        self.put(side, pos, quat)
        wrist = np.zeros(3); self.mj.mju_rotVecQuat(wrist, np.array((-.125, 0, .035)), quat); wrist += pos
        shoulder, elbow = bend_arm(SHOULDER*(s,1,1), wrist, s*.7)
        self.put(f'{side} forearm', wrist, quat_axes(elbow-wrist, (0,.1,1))); self.put(f'{side} arm', shoulder, quat_axes(elbow-shoulder, (0,.1,1)))
        if side in self.held: self.carry(side, pos, quat)
    t = self.data.time
    sway = np.array([np.sin(f*t+a) for f,a in zip((.9, 1.3, .7, 2.1, 1.7, 1.1), self.sway)])
    head = self.head + (.05, .03, .025)*sway[:3] + (.15*self.gaze[0], 0, 0)
    self.put('head', head, look_at(head, self.gaze+.015*sway[3:], .05*sway[0])); self.put('skull', head-(0, .1, .02), (1,0,0,0))
    self.mj.mj_forward(self.model, self.data)



@patch
def move(self:Stage, side:str, target, seconds:float, pitch:float=-.3):
    "A smooth movement of one hand, a tick at a time"
    start, tilt, n = self.hand[side].copy(), self.pitch[side], max(1, round(seconds/TICK))
    for i in range(1, n+1):
        x = i/n; x = x**3*(10-15*x+6*x*x)
        self.hand[side], self.pitch[side] = start+(np.asarray(target)-start)*x, tilt+(pitch-tilt)*x
        yield

@patch
def wait(self:Stage, seconds:float):
    "Nothing, for a while"
    for _ in range(round(seconds/TICK)): yield

@patch
def grab(self:Stage, side:str, name:str):
    "Hold a thing as it is now"
    pos, quat = self.frame(side)
    back, offset, turn = np.zeros(4), np.zeros(3), np.zeros(4)
    self.mj.mju_negQuat(back, quat)
    self.mj.mju_rotVecQuat(offset, self.position(name)-pos, back); self.mj.mju_mulQuat(turn, back, self.data.body(name).xquat)
    self.held[side] = name, offset, turn



@patch
def choose(self:Stage, side:str, rng) -> str|None:
    "A thing that this hand can reach and the other does not hold"
    s = 1 if side=='right' else -1
    held = {h[0] for h in self.held.values()} | set(self.busy.values())
    def near(p): return p[2]>-.05 and -.1<s*p[0]<.5 and p[1]<.32
    names = [n for n in self.things if n not in held and near(self.position(n))]
    return names[rng.integers(len(names))] if names else None

@patch
def free(self:Stage, name:str, side:str, rng):
    "A place on the table, within reach, with room for a thing; `None` if there is none"
    def radius(n): return np.hypot(*self.things[n].size[:2])/2
    for _ in range(60):
        xy = np.array((rng.uniform(-.12, .5)*(1 if side=='right' else -1), rng.uniform(-.2, .34)))
        if any(np.hypot(*(xy-p))<=radius(name)+r for p,r in self.racks): continue
        if all(np.hypot(*(xy-self.position(n)[:2]))>radius(name)+.8*radius(n) for n in self.things if n!=name): return xy



@patch
def lift(self:Stage, side:str, name:str, rng):
    "Take a thing, look at it and put it down somewhere else"
    size = self.things[name].size
    h, grip = size[2], np.array((0, -.2*size[:2].min(), min(.02, size[2]/4)))
    yield from self.move(side, self.position(name)+grip+(0,0,.12), rng.uniform(.4, .7))
    p = self.position(name); yield from self.move(side, p+grip, .3)
    self.grab(side, name)
    up = p*(.6, .3, 0) + (rng.uniform(-.05, .05), rng.uniform(-.15, 0), rng.uniform(.12, .3))
    yield from self.move(side, up, rng.uniform(.5, .9), rng.uniform(-.3, .6)); yield from self.wait(rng.uniform(.3, 1.6))
    spot = self.free(name, side, rng); spot = p[:2] if spot is None else spot
    self.attention = np.array((*spot, 0))
    yield from self.move(side, (*spot, .16+h/2), rng.uniform(.5, .8)); yield from self.move(side, np.array((*spot, h/2+.004))+grip, .4)
    self.held.pop(side)

@patch
def push(self:Stage, side:str, name:str, rng):
    "Shove a thing along the table"
    p, size, a = self.position(name), self.things[name].size, rng.uniform(-.9, .9)+np.pi/2
    way, r = np.array((np.cos(a), np.sin(a), 0)), np.hypot(*size[:2])/2+.04
    low, knuckle = np.array((p[0], p[1], max(.02, size[2]/2))), self.model.geom(f'{side} push')
    yield from self.move(side, low-way*r+(0,0,.12), rng.uniform(.4, .7)); yield from self.move(side, low-way*r, .25)
    knuckle.contype[:] = knuckle.conaffinity[:] = 1
    yield from self.move(side, low+way*rng.uniform(.0, .08), rng.uniform(.5, 1.1))
    knuckle.contype[:] = knuckle.conaffinity[:] = 0



@patch
def work(self:Stage, side:str, rng):
    "All that one hand does in a take: it lifts, pushes and rests in turn"
    yield from self.wait(rng.uniform(0, 1.5))
    while True:
        name, what = self.choose(side, rng), rng.random()
        if name is None or what<.15:
            yield from self.move(side, (.22 if side=='right' else -.22, -.24, .08), .6); yield from self.wait(rng.uniform(.3, 1.2)); continue
        self.busy[side], self.attention = name, self.position(name)
        self.touched.append(name)
        yield from (self.lift if what<.7 else self.push)(side, name, rng)
        self.busy.pop(side)
        yield from self.move(side, self.hand[side]+(0, -.04, .12), .3)

@patch
def run(self:Stage, seconds:float):
    "Let time pass"
    for _ in range(round(seconds/TICK)):
        for p in self.programs: next(p)
        self.gaze += ((.72*self.attention+(0,.03,0))*(1,1,.3)-self.gaze)*TICK/.4
        self.place_body()
        for _ in range(round(TICK/self.model.opt.timestep)): self.mj.mj_step(self.model, self.data)
    self.place_body()



class Eyes:
    "Renders the cameras of a stage, all from one OpenGL context"
    def __init__(self, stage:Stage):
        mj, m = stage.mj, stage.model
        self.stage, self.gl = stage, mj.GLContext(m.vis.global_.offwidth, m.vis.global_.offheight)
        self.gl.make_current()
        self.context, self.scene = mj.MjrContext(m, mj.mjtFontScale.mjFONTSCALE_100), mj.MjvScene(m, 2000)
        mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN, self.context)

    def close(self): self.context.free(); self.gl.free()

@patch
def pixels(self:Eyes, size, segment:bool) -> np.ndarray: # uint8 [H, W, 3]
    "What is in the scene now: colours, or the number of each pixel's part as a colour"
    mj, flags = self.stage.mj, self.scene.flags
    flags[mj.mjtRndFlag.mjRND_SEGMENT] = flags[mj.mjtRndFlag.mjRND_IDCOLOR] = segment
    image, rect = np.empty((*size, 3), np.uint8), mj.MjrRect(0, 0, size[1], size[0])
    mj.mjr_render(rect, self.scene, self.context); mj.mjr_readPixels(image, None, rect, self.context)
    return image[::-1]



@patch
def see(self:Eyes, camera:str) -> tuple[np.ndarray,dict]: # uint8 [H, W, 3]; {body: bool [H, W]}
    "The image of a camera, and the pixels of each body in it"
    mj, m, view = self.stage.mj, self.stage.model, view_of(camera)
    option, cam = mj.MjvOption(), mj.MjvCamera()
    option.geomgroup[:] = (1, 1, view=='exo', 0, 0, 0)
    cam.type, cam.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, m.camera(camera).id
    mj.mjv_updateScene(m, self.stage.data, option, None, cam, mj.mjtCatBit.mjCAT_ALL, self.scene)
    image, ids = self.pixels(SIZES[view], False), self.pixels(SIZES[view], True).astype(np.int32) @ (1, 1<<8, 1<<16)
    body_of = np.zeros(self.scene.ngeom+1, np.int32)
    for g in self.scene.geoms[:self.scene.ngeom]:
        if g.objtype==mj.mjtObj.mjOBJ_GEOM: body_of[g.segid+1] = m.geom_bodyid[g.objid]
    bodies = body_of[ids]
    return image, {m.body(b).name: bodies==b for b in np.unique(bodies) if b}



def camera_look(rng) -> dict:
    "How one camera renders colour: gain of each channel, contrast, saturation, darkness at the corners, noise"
    return dict(gain=rng.uniform(.9, 1.12)*rng.uniform(.95, 1.05, 3), gamma=rng.uniform(.85, 1.15), saturation=rng.uniform(.65, .95),
                corners=rng.uniform(.05, .25), noise=rng.uniform(.5, 1.5))

def develop(image:np.ndarray, look:dict, rng) -> np.ndarray: # uint8 [H, W, 3]
    "A rendered image as one camera would take it"
    x = image.astype(np.float32)/255
    x = x.mean(-1, keepdims=True)*(1-look['saturation']) + x*look['saturation']
    h, w = x.shape[:2]
    y, z = np.linspace(-1, 1, h, dtype=np.float32)[:,None,None], np.linspace(-1, 1, w, dtype=np.float32)[:,None]
    x = (x*look['gain'].astype(np.float32)*(1-look['corners']*(y*y+z*z)/2)).clip(0, 1)**look['gamma']
    return (x*255+look['noise']*rng.standard_normal(x.shape, np.float32)).clip(0, 255).round().astype(np.uint8)



FPS = 30 # Of the videos; there is one annotated frame a second

def write_video(
    path, # The mp4 to write
    frames, # uint8 [H, W, 3] images, RGB, one a second
    crf:int=28 # H.264's constant quality; lower is better
):
    "An H.264 video of 30 frames a second in which every image stands for its second, starting with a key frame"
    import av
    with atomic_path(path) as tmp, av.open(str(tmp), 'w', format='mp4') as video:
        options = {'crf': str(crf), 'preset': 'medium', 'threads': '1', 'x264-params': f'keyint={FPS}:min-keyint={FPS}:scenecut=0:bframes=0:rc-lookahead=5'}
        stream = video.add_stream('libx264', rate=FPS, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        for k, image in enumerate(frames):
            still = av.VideoFrame.from_ndarray(image, 'rgb24').reformat(format='yuv420p')
            for i in range(FPS):
                still.pts = k*FPS+i
                video.mux(stream.encode(still))
        video.mux(stream.encode())



NAMESPACE = uuid.UUID('6f1d6a5e-3c0b-5d59-9a55-0c1e64ad7d10')
TASKS = dict(Cooking='Making Breakfast', Health='Rapid Antigen Test')
LEAST = dict(ego=60, exo=20) # Pixels: a smaller mask is not annotated

class TakePlan(NamedTuple):
    "What identifies a take: the same plan gives the same bytes"
    seed:int; split:str; index:int; frames:int

    @property
    def scenario(self): return ('Health', 'Cooking')[self.index%2]
    @property
    def uid(self): return str(uuid.uuid5(NAMESPACE, repr(tuple(self))))
    @property
    def name(self): return f'mini_{self.scenario.lower()}_{1000*list(SPLITS).index(self.split)+self.index+1:04d}_{self.seed}'
    @property
    def key(self): return [self.seed, list(SPLITS).index(self.split), self.index]



def film(plan:TakePlan):
    "Simulate a take: its images {camera: [frames]}, its masks {camera: [{body: RLE}]}, and the stage at its end"
    stage = Stage(plan.split, plan.scenario, plan.key)
    eyes, images, masks = Eyes(stage), {c: [] for c in (EGO, *EXO)}, {c: [] for c in (EGO, *EXO)}
    looks = {c: camera_look(np.random.default_rng([*plan.key, i])) for i,c in enumerate(images)}
    for f in range(plan.frames):
        if f: stage.run(1)
        for i, c in enumerate(images):
            image, seen = eyes.see(c)
            images[c].append(develop(image, looks[c], np.random.default_rng([*plan.key, i, f])))
            masks[c].append({n: rle_encode(m) for n,m in seen.items() if n in stage.things and m.sum()>=LEAST[view_of(c)]})
    eyes.close()
    return images, masks, stage



def choose_annotated(masks, stage, n:int=8) -> list[str]:
    "The bodies to annotate: look-alikes first, then others, all seen by the ego camera and an exo camera in some frames"
    seen = {c: {b: sum(b in f for f in frames) for b in stage.things} for c, frames in masks.items()}
    fit = [b for b in stage.things if seen[EGO][b]>=2 and max(seen[c][b] for c in EXO)>=2]
    family = [stage.things[b].model[:3] for b in fit]
    touched = {f: sum(stage.touched.count(b) for b in fit if stage.things[b].model[:3]==f) for f in family if family.count(f)>1}
    many = sorted(touched, key=lambda f: -touched[f])[:2]
    return sorted(fit, key=lambda b: (stage.things[b].model[:3] not in many, -stage.touched.count(b)))[:n]



def annotate(plan:TakePlan, masks, stage) -> dict:
    "The entry of a take in `relations_*.json` (SPEC 1)"
    objects, frames = {}, [f*FPS for f in range(plan.frames)]
    for body in choose_annotated(masks, stage):
        name = stage.things[body].name
        cameras = {}
        for c, seen in masks.items():
            marked = {str(f): encode_annotation(m[body]) for f,m in zip(frames, seen) if body in m}
            if marked: cameras[c] = dict(annotation=marked, annotation_fps=1, annotated_frames=frames)
        objects[f'{name}_{sum(o.rsplit("_", 1)[0]==name for o in objects)}'] = cameras
    return dict(scenario=plan.scenario, take_name=plan.name, object_masks=objects)

def take_entry(plan:TakePlan) -> dict:
    "The entry of a take in `takes.json`"
    files = {c: f'frame_aligned_videos/{c}.mp4' for c in (EGO, *EXO)}
    return dict(root_dir=f'takes/{plan.name}', take_uid=plan.uid, take_name=plan.name, task_name=TASKS[plan.scenario], parent_task_name=plan.scenario,
                duration_sec=plan.frames, is_dropped=False, university_name='mini', best_exo=EXO[0],
                frame_aligned_videos={c.split('_')[0]: {'rgb' if c==EGO else '0': dict(cam_id=c.split('_')[0], stream_id='rgb' if c==EGO else '0', relative_path=f, is_ego=c==EGO)}
                                      for c,f in files.items()})



def make_take(
    out,           # The folder of the release
    plan:TakePlan  # Which take
) -> dict:         # Its entry in `relations_*.json`
    "Simulate a take and write its videos; its annotation is written last, so that a take is either whole or not there"
    out = Path(out); part = out/'.making'/f'{plan.uid}.json'
    if part.exists(): return read_json(part)
    images, masks, stage = film(plan)
    for c, frames in images.items(): write_video(out/'takes'/plan.name/'frame_aligned_videos'/f'{c}.mp4', frames)
    entry = annotate(plan, masks, stage)
    write_json(part, entry)
    return entry

def plans(seed:int, takes, frames:int) -> list[TakePlan]: # `takes`: how many of train, val and test
    "The takes of a release"
    if len(takes)!=3 or min(takes)<0 or not sum(takes): raise ArgumentError(f'takes must be three whole numbers (train, val, test), not all 0: {takes!r}')
    if frames<1 or seed<0: raise ArgumentError(f'frames must be at least 1 and the seed at least 0, not {frames!r} and {seed!r}')
    return [TakePlan(seed, split, i, frames) for split,n in zip(SPLITS, takes) for i in range(n)]



def share(
    f,           # A function of this module
    arguments,   # A list of tuples
    workers:int  # Processes; with 1 it all runs in this one
):
    "`f(*a)` for each of `arguments`, in order"
    if workers<1: raise ArgumentError(f'workers must be at least 1, not {workers!r}')
    if workers==1: yield from (f(*a) for a in arguments); return
    with ProcessPoolExecutor(workers, get_context('spawn')) as pool:
        jobs = [pool.submit(f, *a) for a in arguments]
        try: yield from (job.result() for job in jobs)
        finally: pool.shutdown(cancel_futures=True)



def write_index(out:Path, todo:list[TakePlan]):
    "Gather the takes of a release into its JSON files, `takes.json` last"
    parts = {p: read_json(out/'.making'/f'{p.uid}.json') for p in todo}
    for split in SPLITS:
        write_json(out/'annotations'/f'relations_{split}.json', dict(annotations={p.uid: parts[p] for p in todo if p.split==split}))
    write_json(out/'split.json', {s: [p.uid for p in todo if p.split==s] for s in SPLITS})
    write_json(out/'takes.json', [take_entry(p) for p in todo], indent=1)

def make_release(
    out,              # The folder of the release: new, empty, or with a part of this very release
    seed:int=0,       # Another seed, other scenes
    takes=(12, 3, 6), # Takes of train, val and test
    frames:int=12,    # Annotated frames of a take, one a second
    workers:int=2     # Processes; with 1 it all runs in this one
) -> Path:            # `out`
    "Make EgoExo-Mini. Stopped at any point and started again, it goes on and ends with the same bytes"
    from tqdm.auto import tqdm
    out, todo = Path(out), plans(seed, takes, frames)
    if sim_missing(): raise EgoExoError(sim_missing())
    if (index := out/'takes.json').exists():
        if [t.get('take_uid') for t in read_json(index)]!=[p.uid for p in todo]: raise DataError('this folder holds another release; name a new one', file=out)
    elif {p.stem for p in (out/'.making').glob('*.json')} - {p.uid for p in todo}: raise DataError('this folder holds a part of another release; name a new one', file=out)
    else:
        with tqdm(total=len(todo), desc='takes', disable=None) as bar:
            for _ in share(make_take, [(out, p) for p in todo], workers): bar.update()
        write_index(out, todo)
    shutil.rmtree(out/'.making', ignore_errors=True)
    return out



LIMBS = {'left forearm': 'left', 'left arm': 'left', 'right forearm': 'right', 'right arm': 'right', 'trunk': 'person', 'skull': 'person'}

def training_frames(
    n:int,              # Frames, half of them ego and half exo
    seed:int=0,         # Another seed, other scenes
    split:str='train',  # Whose models appear
    per_scene:int=8     # Frames of one scene: at half as many moments, from the ego camera and an exo camera
):
    "Random scenes with the masks of everything that can be told apart: yields image, {instance: RLE}, camera"
    for scene in count():
        stage = Stage(split, ('Health', 'Cooking')[scene%2], [seed, 17, list(SPLITS).index(split), scene])
        eyes, rng = Eyes(stage), np.random.default_rng([seed, 18, scene])
        looks = {c: camera_look(rng) for c in (EGO, *EXO)}
        for i in range(per_scene):
            if n<=0: eyes.close(); return
            if i%2==0: stage.run(rng.uniform(.5, 2))
            camera = EGO if i%2==0 else EXO[rng.integers(2)]
            image, seen = eyes.see(camera)
            masks = {}
            for name, mask in seen.items(): masks[LIMBS.get(name, name)] = masks.get(LIMBS.get(name, name), False) | mask
            yield develop(image, looks[camera], rng), {k: rle_encode(m) for k,m in masks.items() if m.sum()>=LEAST[view_of(camera)]}, camera
            n -= 1
        eyes.close()



def write_frames_share(out, first:int, n:int, seed:int, split:str) -> list[tuple]: # Image number, file name, (height, width), {instance: RLE}
    "One worker's share of `write_training_frames`: the JPEGs, and what is to be known of them"
    from PIL import Image
    rows = []
    for i, (image, masks, _) in enumerate(training_frames(n, seed, split), first):
        path = Path(out)/'images'/f'{i:06d}.jpg'
        with atomic_path(path) as tmp: Image.fromarray(image).save(tmp, 'JPEG', quality=92)
        rows.append((i, path.name, image.shape[:2], masks))
    return rows

def write_training_frames(
    out,               # Folder: `images/*.jpg` and `instances.json` (COCO, masks as compressed RLE)
    n:int,             # Frames
    seed:int=0,        # Another seed, other scenes
    split:str='train', # Whose models appear
    workers:int=2      # Processes
) -> Path:             # The JSON file
    "A COCO data set for a class-agnostic segmenter; category 1: things, 2: furniture, 3: wearer"
    if sim_missing(): raise EgoExoError(sim_missing())
    starts = range(0, n, 40)
    rows = sum(share(write_frames_share, [(out, k, min(40, n-k), seed*1000+k//40, split) for k in starts], workers), [])
    images = [dict(id=i, file_name=name, height=h, width=w) for i,name,(h,w),_ in rows]
    marks = [(i, dict(thing=1, rack=2).get(key.split()[0], 3), rle) for i,_,_,masks in rows for key, rle in masks.items()]
    areas, boxes = rle_areas([m[2] for m in marks]).tolist(), rle_boxes([m[2] for m in marks]).tolist()
    notes = [dict(id=k, image_id=i, category_id=c, segmentation=rle, area=a, bbox=b, iscrowd=0) for k,((i,c,rle),a,b) in enumerate(zip(marks, areas, boxes), 1)]
    write_json(Path(out)/'instances.json', dict(images=images, annotations=notes, categories=[dict(id=k, name=v) for k,v in enumerate(('thing', 'furniture', 'wearer'), 1)]))
    return Path(out)/'instances.json'

